"""A network whose layers all differ in kind, and runs that start from somebody's weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Run
from engine.anatomy import Anatomy

sys.path.insert(0, str(Path(__file__).parent))
from networks import Branched, run_of


@pytest.fixture
def anatomy() -> Anatomy:
    return Anatomy(Branched, 3, (1, 8, 8))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    """Return ``run_of`` into a named folder below tmp_path."""

    def build(out: str = "run", **given: Any) -> Run:
        return run_of(tmp_path / out, **given)

    return build
