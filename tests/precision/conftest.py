"""Where modules that these tests share are found; one thread for all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("precision", "core")]


@pytest.fixture(autouse=True)
def _one_thread():
    """These networks are so small that a second thread, on a busy machine, is only waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
