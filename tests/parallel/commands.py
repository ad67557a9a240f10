"""Whole commands in processes of their own, and what becomes of them when some are stopped or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from engine import manifest

LONGEST = 90.0  # seconds until something that must happen has happened, on a busy machine
QUICK = ["run.evaluate_every=never", "data.threads=0", "observe=[csv]", "model=mlp", "run.batch=24", "run.log_every=10"]
ENGINE = [sys.executable, "-m", "engine"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


class Command:
    """A command that runs, with everything that it starts in a session of its own."""

    def __init__(self, words: Sequence[str], folder: Path, variables: dict[str, str]) -> None:
        self._told = folder / f"stderr-{time.monotonic_ns()}"
        self._token = f"ENGINE_TEST_COMMAND={time.monotonic_ns()}"  # by which its processes are found
        name, _, value = self._token.partition("=")
        surroundings = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        surroundings |= {"OMP_NUM_THREADS": "1", name: value, **variables}
        with self._told.open("w") as told:
            self.process = subprocess.Popen(
                words, cwd=folder, env=surroundings, stdout=told, stderr=told, start_new_session=True
            )

    @property
    def told(self) -> str:
        """What all processes have printed so far."""
        return self._told.read_text()

    def end(self, longest: float = LONGEST) -> int:
        """Wait until the command has ended; return its exit code."""
        return self.process.wait(longest)

    def until(self, happened: Callable[[], object], what: str) -> None:
        """Wait until something has happened while the command runs."""
        end = time.monotonic() + LONGEST
        while not happened():
            assert self.process.poll() is None, f"it ended before {what}:\n{self.told}"
            assert time.monotonic() < end, f"no {what}:\n{self.told}"
            time.sleep(0.01)

    def until_saved(self, out: Path, step: int) -> None:
        """Wait until a checkpoint of this step, or of a later one, is there."""
        self.until(lambda: any(int(f.name[5:]) >= step for f in manifest.checkpoints(out)), f"checkpoint {step}")

    def processes(self) -> dict[int, int]:
        """Return the numbers of the training processes that are there, by rank."""
        found = {}
        for each in Path("/proc").glob("[0-9]*"):
            try:
                told = (each / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended meanwhile, or is not ours
                continue
            ranks = [word for word in told if word.startswith("RANK=")]
            if self._token in told and ranks:
                found[int(ranks[0][5:])] = int(each.name)
        return found

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one of the training processes."""
        os.kill(self.processes()[rank], number)

    def close(self) -> None:
        """End all of its processes."""
        self.process.kill()
        self.process.wait(LONGEST)
        for number in self.processes().values():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def two(*words: str) -> list[str]:
    """Return a command that trains in two processes."""
    return ["train", "parallel=data", "parallel.processes=2", *QUICK, *words]
