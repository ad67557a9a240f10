"""Where modules that these tests share are found; small runs; one thread, whose arithmetic is the same every time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Run
from engine.registry import Registry

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
sys.path.insert(0, str(Path(__file__).parent))
from small_run import build_run


@pytest.fixture(autouse=True)
def _alone(one_thread: None) -> None:
    """Compute with one thread in all of these tests."""


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def make(registry: Registry, tmp_path: Path) -> Callable[..., Run]:
    """Return a function that assembles a small run in a named folder below tmp_path."""

    def build(out: str = "run", **given: Any) -> Run:
        return build_run(registry, tmp_path / out, **given)

    return build
