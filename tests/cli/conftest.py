"""The command line in one process: real built-in plugins beside a small foreign one whose jobs train nothing."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hydra.core.config_store import ConfigStore

from engine import Augment, Data, Job, Optim, RunFailed, UsageError, cli, hookimpl, manifest, option, required
from engine.errors import Stopped
from engine.options import GROUPS
from engine.registry import Plugin, Registry
from engine.session import Session

SESSIONS: list[Session] = []


def gauge(session: Session) -> None:
    """Remember the session, then end as ``mode`` says."""
    SESSIONS.append(session)
    mode = session.options.job.mode
    if mode == "mistake":
        raise UsageError("data.root=/x: no such folder")
    if mode == "failure":
        raise RunFailed("the loss is not finite")
    if mode == "stop":
        raise Stopped("stopped by SIGTERM")
    if mode == "interrupt":
        raise KeyboardInterrupt
    if mode == "defect":
        raise ZeroDivisionError("a defect")


@dataclass
class Gauge(Job):
    """Remember what it was given."""

    keeps_output: ClassVar[bool] = True
    mode: str = option("fine", "how it ends", choices=("fine", "mistake", "failure", "stop", "interrupt", "defect"))
    level: int = option(1, "a number")

    def build(self) -> Callable[[Session], None]:
        return gauge


@dataclass
class Glance(Job):
    """Look at a checkpoint and write nothing."""

    checkpoint: str = option("", "engine checkpoint or weights")
    mode: str = option("fine", "how it ends")

    def build(self) -> Callable[[Session], None]:
        return gauge


@dataclass
class Blend(Augment):
    """Blend pairs of images."""

    alpha: float = option(0.2, "strength", above=0)


@dataclass
class Needy(Data):
    """Records of a place that must be given."""

    root: str = required("folder of the records")


@dataclass
class ByLayer(Optim):
    """A rate for each layer."""

    rates: dict[str, float] = option({}, "layer to rate")
    steps: list[int] = option([1, 2], "some steps")


@hookimpl
def engine_options(store) -> None:
    store.add("job", "gauge", Gauge)
    store.add("job", "glance", Glance)
    store.add("augment", "blend", Blend)
    store.add("data", "needy", Needy)
    store.add("optim", "by_layer", ByLayer)


@dataclass
class Outcome:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def session(self) -> Session:
        return SESSIONS[-1]


@pytest.fixture(scope="session")
def registry() -> Registry:
    registry = Registry.load()
    supplied = registry.register("mixlib", SimpleNamespace(engine_options=engine_options))
    registry.plugins.append(Plugin("mixlib", "mixlib-dist", "3.1", supplied))
    return registry


@pytest.fixture
def engine(registry, monkeypatch, tmp_path, capsys) -> Iterator[Callable[..., Outcome]]:
    """Return a function that carries out a command line in an empty folder; sessions are forgotten in between."""
    SESSIONS.clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.Registry, "load", classmethod(lambda cls: registry))

    def command(*argv: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["engine", *argv])
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        else:
            code = 0
        return Outcome(code, *capsys.readouterr())

    yield command
    for group in GROUPS:  # the store is Hydra's and outlives the command
        ConfigStore.instance().repo.pop(group, None)


@pytest.fixture
def sessions() -> list[Session]:
    return SESSIONS


@pytest.fixture
def checkpoint() -> Callable[..., Path]:
    """Return a function that writes a finished checkpoint of a run with the given overrides, without torch."""

    def write(run: Path, overrides: Sequence[str], step: int = 10) -> Path:
        folder = manifest.folder_of(run, step)
        folder.mkdir(parents=True)
        content = b"weights"
        (folder / "model.safetensors").write_bytes(content)
        facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        stated = {"format": manifest.FORMAT, "overrides": list(overrides), "files": {"model.safetensors": facts}}
        stated["checksum"] = manifest.checksum(stated)
        (folder / manifest.NAME).write_text(json.dumps(stated))
        return folder

    return write
