"""Caffe's cifar10_quick, in a file of its old layers, tests as Caffe's own log says."""

from __future__ import annotations

import re

import numpy as np
import pytest
from caffe import read_weights
from cifar10_quick import state_of
from safetensors.torch import save_file


@pytest.mark.parametrize(
    ("iterations", "accuracy", "loss"),
    [(4000, 0.6854, 0.93771), pytest.param(5000, 0.7491, 0.74817, marks=pytest.mark.soak)],
)
def test_it_tests_as_caffe_logged(engine, plugin, real_data, tmp_path, iterations, accuracy, loss):
    (path,) = real_data("weights/caffe_cifar10_quick").glob(f"*_{iterations}.caffemodel")
    data = real_data("cifar10")
    training = [np.fromfile(file, np.uint8).reshape(-1, 3073) for file in sorted(data.glob("data_batch_*.bin"))]
    mean = np.concatenate(training)[:, 1:].mean(0).reshape(3, 32, 32)
    save_file(state_of(read_weights(path), mean), tmp_path / "quick.safetensors")
    plugin("cifar10_quick")
    code, told, said = engine(
        "evaluate", "checkpoint=quick.safetensors", "data=cifar10", f"data.root={data}", "model=quick_less_mean",
        "augment=[]", "run.batch=100", "run.device=cpu", "run.channels_last=true",
    )  # fmt: skip
    assert code == 0, said
    found = dict(re.findall(r"(\w+) ([\d.]+)", told))
    # Caffe's mean image is that of all 50,000 training images; here are only those that are in the folder.
    assert float(found["accuracy"]) == pytest.approx(accuracy, abs=1.5e-3)
    assert float(found["loss"]) == pytest.approx(loss, abs=1e-3)
