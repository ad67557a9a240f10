"""Fixtures around the small run of small_run.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Run
from engine.registry import Registry

sys.path.insert(0, str(Path(__file__).parent))
from graphs_on_host import Host, install
from small_run import build_run


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def make(registry: Registry, tmp_path: Path) -> Callable[..., Run]:
    """Return ``build_run`` with the registry, into a named folder below tmp_path."""

    def build(out: str = "run", **given: Any) -> Run:
        return build_run(registry, tmp_path / out, **given)

    return build


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Let torch.cuda's streams, events and graphs be stand-ins that work on the CPU; return what they share."""
    return install(monkeypatch)
