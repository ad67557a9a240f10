"""The CUDA kernels, compiled for the host once a session."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("cuda", "kernels", "csrc", "images")]


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """Return the extension of the CUDA kernels compiled for the host."""
    import on_host

    return on_host.module()
