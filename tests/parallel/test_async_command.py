"""``engine train parallel=async``: a whole command whose worker and server are killed, and which is then stopped."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from commands import QUICK, Command

from engine import manifest
from engine.plugins.parallel.asynchronous.trace import read

WORDS = ["train", *QUICK, "parallel=async", "parallel.processes=2", "parallel.threads=1", "out=run"]


def joined(command: Command) -> list[int]:
    """Return the processes of the workers that have joined so far."""
    return [int(number) for number in re.findall(r"worker \d+ \(\S+ process (\d+)\) has joined", command.told)]


def newest(out: Path) -> int:
    return int(manifest.checkpoints(out)[0].name.removeprefix("step-"))


def kill_both(command: Command, out: Path) -> None:
    """Kill a worker, and when it has been started again the server; wait until all are at work again."""
    command.until_saved(out, 50)
    command.until(lambda: len(joined(command)) == 2, "two workers")
    os.kill(joined(command)[0], signal.SIGKILL)
    command.until(lambda: len(joined(command)) == 3, "a new worker")
    assert re.search(r"worker process \d+ was ended by SIGKILL; it starts again, the others go on", command.told)
    os.kill(int((out / "run.lock").read_text()), signal.SIGKILL)
    command.until(lambda: len(joined(command)) == 5, "both workers with a new server")
    assert "the server was ended by SIGKILL; it starts again from the newest checkpoint" in command.told


def steps_in(out: Path) -> list[int]:
    return [taken.step for update in read(out)[1] for taken in update.steps]


def test_killed_processes_start_again_by_themselves_and_a_stop_saves(
    tmp_path: Path, start: Callable[..., Command]
) -> None:
    out = tmp_path / "run"
    command = start(*WORDS, "run.steps=1000000", "save.every=50 steps")
    kill_both(command, out)
    command.process.send_signal(signal.SIGUSR1)
    assert command.end() == 75, command.told
    assert f"stopped by SIGUSR1 after step {newest(out)} of 1000000; checkpoint saved" in command.told
    assert "Traceback" not in command.told
    assert not command.processes()
    steps = steps_in(out)
    assert len(steps) == len(set(steps)) == newest(out)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_after_killed_processes_every_step_is_made_once(tmp_path: Path, start: Callable[..., Command]) -> None:
    out = tmp_path / "run"
    command = start(*WORDS, "run.steps=10000", "save.every=50 steps")
    kill_both(command, out)
    assert command.end(300) == 0, command.told  # so many steps that none of those killed comes too late
    assert newest(out) == 10000
    assert sorted(steps_in(out)) == list(range(10000))
