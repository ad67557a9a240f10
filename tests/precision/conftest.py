"""Where modules that these tests share are found; one thread for all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("precision", "core")]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Compute with one thread."""
