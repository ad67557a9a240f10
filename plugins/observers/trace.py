"""A trace of a few steps by torch's profiler: what each thread of the host and each stream of the GPU did, and when."""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, schedule

from engine import hookimpl

from .writing import near, say, writing

if TYPE_CHECKING:
    from engine import Run

ENDING = ".pt.trace.json"  # by which TensorBoard's profiler plugin knows its files


class Trace:
    """Records steps ``wait + warmup + 1`` to ``wait + warmup + record`` of this process, and writes one file of them.

    A run that ends before, for whatever reason, leaves the whole steps that were recorded, if any. Either way a line on
    standard error tells what there is. No file is written over: one of the same step gets another name.
    """

    def __init__(self, wait: int, warmup: int, record: int) -> None:
        self._before, self._record = wait + warmup, record
        self._schedule = schedule(wait=wait, warmup=warmup, active=record, repeat=1)
        self._profiler: profile | None = None
        self._first = 0  # the step before the first that is recorded
        self._steps = 0  # made since the start

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Begin to count."""
        self._first = run.position.step + self._before
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(
            activities=activities,
            schedule=self._schedule,
            # Without it the ranges of the loader's threads would be missing.
            experimental_config=_ExperimentalConfig(profile_all_threads=True),
        )
        self._profiler.start()

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        """Mark a step's end; after the last one recorded, write the file."""
        if self._profiler is None:
            return
        self._steps += 1
        if self._steps < self._before + self._record:
            self._profiler.step()
        else:
            self._finish(run)

    @hookimpl
    def on_fit_end(self, run: Run) -> None:
        """Write what was recorded, if the run ended before the last step to record."""
        if self._profiler is not None:
            self._finish(run)

    def _finish(self, run: Run) -> None:
        profiler, self._profiler = self._profiler, None
        assert profiler is not None, "it is finished once"
        with run.clock.paused():
            profiler.stop()
            recorded = self._steps - self._before
            if recorded < 1:
                say(f"profile: no trace, as the run ended before step {self._first + 1}, the first to be recorded")
                return
            path = self._free_name(run)
            with writing(path):
                path.touch()  # the profiler would not say that it cannot write
                profiler.export_chrome_trace(str(path))
        steps = f"steps {self._first + 1} to {self._first + recorded}" if recorded > 1 else f"step {self._first + 1}"
        say(f"profile: {steps} in {near(path)}: open it in https://ui.perfetto.dev, chrome://tracing or TensorBoard")

    def _free_name(self, run: Run) -> Path:
        """Return the file to write: named after its first step and this process, if there are several."""
        process = f"-rank{run.strategy.rank}" if run.strategy.world > 1 else ""
        again = chain([""], (f"-{number}" for number in count(2)))
        names = (f"profile{process}{number}.{self._first + 1}{ENDING}" for number in again)
        return next(path for name in names if not (path := run.out / name).exists())
