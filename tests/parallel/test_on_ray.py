"""Processes that Ray starts: the same run as those of torch's launcher."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command, two

from engine import manifest

STEADY = two("parallel.launcher=ray", "save.every=10 steps", "optim.lr=0.02")
BY_RAY = [*STEADY, "run.steps=150"]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_one_line_says_what_to_install(engine) -> None:
    code, _, said = engine(*BY_RAY)
    assert code == 2
    assert said.strip() == "engine: parallel.launcher=ray needs Ray: pip install ray, or leave parallel.launcher out"


@pytest.mark.soak
def test_weights_are_those_of_the_other_launcher(
    start: Callable[..., Command], undisturbed: tuple[list[str], Path, str], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    command = start(*BY_RAY, "out=by_ray")
    assert command.end() == 0, command.told
    folders = [manifest.checkpoints(folder)[0] for folder in (undisturbed[1], tmp_path / "by_ray")]
    one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == other


@pytest.mark.soak
def test_a_signal_saves_and_stops_all(start: Callable[..., Command], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    command = start(*STEADY, "run.steps=100000", "out=stopped")
    command.until_saved(tmp_path / "stopped", 10)
    command.process.send_signal(signal.SIGTERM)
    assert command.end() == 75, command.told
    assert manifest.newest_valid(tmp_path / "stopped", print) is not None


@pytest.mark.soak
def test_too_many_processes_are_refused(start: Callable[..., Command]) -> None:
    pytest.importorskip("ray")
    words = [word for word in STEADY if not word.startswith(("parallel.processes", "run.batch"))]
    command = start(*words, "parallel.processes=1000", "run.batch=1000")
    assert command.end() == 2
    assert "the Ray cluster has" in command.told
