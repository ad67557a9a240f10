"""A copy of what an installation is built from, so that no test builds in the repository itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "plugins", "conf", "csrc")
FILES = ("Makefile", "LICENSE", "README*", "pyproject.toml", "setup.py", "requirements*.txt", "constraints.txt")


@pytest.fixture(scope="session")
def quickly() -> dict[str, str]:
    """Return an environment in which the CPU's extension is built in seconds: nobody times what these tests build."""
    return {**os.environ, "CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} -O0", "ENGINE_CUDA": "0"}


@pytest.fixture(scope="session")
def copy_sources() -> Callable[[Path], Path]:
    """Return a function that copies the sources, none of them compiled, to a new folder and returns it."""

    def copy(target: Path) -> Path:
        for name in FOLDERS:
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for file in [file for pattern in FILES for file in ROOT.glob(pattern)]:
            shutil.copy(file, target)
        return target

    return copy
