"""What becomes of a run whose processes are killed, stop answering, or lose a machine or their disk."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from commands import two

from engine import manifest

LOST = "all processes start again from the newest checkpoint (restart 1 of 3)"


def same_end(one: Path, other: Path) -> None:
    """Check that two runs have ended with the same weights and optimiser, bit for bit."""
    ends = [manifest.verify(manifest.checkpoints(out)[0]) for out in (one, other)]
    assert ends[0]["position"] == ends[1]["position"]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert ends[0]["files"][name]["sha256"] == ends[1]["files"][name]["sha256"], name


def restarted(command, out: Path, at: int) -> None:
    """Wait until the run goes on after its restart; print how long that took, for those who want to know."""
    begun = time.monotonic()
    command.until(lambda: LOST in command.told, "a restart")
    told = time.monotonic()
    newest = int(manifest.checkpoints(out)[0].name[5:])
    command.until_saved(out, newest + 10)
    print(f"noticed after {told - begun:.1f} s, training again after {time.monotonic() - begun:.1f} s")


def killed(start, undisturbed, tmp_path, rank: int) -> None:
    words, out, _ = undisturbed
    command = start(*words, "out=run")
    command.until_saved(tmp_path / "run", 30)
    command.signal(rank, signal.SIGKILL)
    restarted(command, tmp_path / "run", 30)
    assert command.end() == 0, command.told
    assert f"engine: rank {rank} was ended by SIGKILL" in command.told
    same_end(out, tmp_path / "run")


def test_a_killed_process_costs_nothing_but_time(start, undisturbed, tmp_path):
    killed(start, undisturbed, tmp_path, 1)


@pytest.mark.soak
def test_the_first_process_may_be_killed_too(start, undisturbed, tmp_path):
    killed(start, undisturbed, tmp_path, 0)


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_is_named_and_replaced(start, undisturbed, tmp_path, rank):
    words, out, _ = undisturbed
    command = start(*words, "parallel.timeout=5", "out=run")
    command.until_saved(tmp_path / "run", 30)
    command.signal(rank, signal.SIGSTOP)
    restarted(command, tmp_path / "run", 30)
    assert command.end() == 0, command.told
    assert re.search(f"rank {1 - rank}: .* failed .*; rank {rank} does not answer", command.told), command.told
    if rank == 1:  # the store is rank 0's; where it stands still nobody can tell what it was last in
        assert re.search(r"rank 1 does not answer, last in (all_reduce|exchange) \w+", command.told), command.told
    same_end(out, tmp_path / "run")


@pytest.mark.soak
def test_restarts_come_to_an_end(start, tmp_path):
    command = start(*two("run.steps=100000", "save.every=10 steps", "parallel.restarts=0", "out=run"))
    command.until_saved(tmp_path / "run", 20)
    command.signal(1, signal.SIGKILL)
    assert command.end() == 3
    (line,) = command.told.splitlines()
    assert line.startswith("engine: rank 1 was ended by SIGKILL; ")
    assert line.endswith("after 0 restarts (parallel.restarts); engine train resume=" + f"{tmp_path / 'run'} goes on")
    manifest.verify(manifest.checkpoints(tmp_path / "run")[0])
