"""Where modules that these tests share are found; small runs; one thread, whose arithmetic is the same every time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import Run
from engine.registry import Registry

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
sys.path.insert(0, str(Path(__file__).parent))
from small_run import build_run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def make(registry: Registry, tmp_path: Path) -> Callable[..., Run]:
    """Return a function that assembles a small run in a named folder below tmp_path."""

    def build(out: str = "run", **given: Any) -> Run:
        return build_run(registry, tmp_path / out, **given)

    return build
