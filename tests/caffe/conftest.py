"""Helpers of the tests on Caffe's files: real weights, the mean of CIFAR-10's images, and OpenCV as an oracle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from caffe_files import write_mean


@pytest.fixture(scope="session")
def cifar_mean(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """Return the mean.binaryproto of CIFAR-10's training images, and whether it is of all 50,000."""
    batches = sorted(real_data("cifar10").glob("data_batch_*.bin"))
    images = np.concatenate([np.fromfile(batch, np.uint8).reshape(-1, 3073)[:, 1:] for batch in batches])
    path = tmp_path_factory.mktemp("cifar") / "mean.binaryproto"
    return write_mean(path, images.mean(0).reshape(3, 32, 32)), len(images) == 50_000
