"""How a run is going, for the person who started it: a bar in a terminal, lines in a log file."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from engine import hookimpl

from .writing import near, say

if TYPE_CHECKING:
    from torch import Tensor

    from engine import Run


class Bar(tqdm):
    """tqdm over steps that tells the rate in images."""

    monitor_interval = 0  # no watching thread: every update looks at the clock by itself
    images = 1  # per step

    @property
    def format_dict(self) -> dict[str, Any]:
        """Add ``images_rate`` to what the bar's format may use."""
        values = super().format_dict
        elapsed = values["elapsed"]
        rate = values["rate"] or ((self.n - self.initial) / elapsed if elapsed else 0.0)
        return {**values, "images_rate": f"{rate * self.images:,.0f} images/s"}


class Progress:
    """Tells what is trained, how it goes and how it ended; lines at each evaluation, epoch and ``every`` seconds."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._bar: Bar | None = None
        self._advance: Any = _nothing
        self._shown: dict[str, float] = {}  # the newest numbers, by tag
        self._metrics: list[str] = []
        self._first_step = 0
        self._started = self._told_at = time.monotonic()
        self._told_step = -1

    @hookimpl
    def on_save_checkpoint(self, run: Run, state: dict[str, Any]) -> None:
        """Note how the numeric policy was set."""
        state["progress"] = {"precision": dataclasses.asdict(run.options.precision)}

    @hookimpl
    def on_load_checkpoint(self, run: Run, state: dict[str, Any]) -> None:
        """Tell which options of the numeric policy are others from here on: all that is computed depends on them."""
        saved = state.get("progress", {}).get("precision", {})
        for name, value in dataclasses.asdict(run.options.precision).items():
            if (before := saved.get(name, value)) != value:
                say(f"precision.{name}={value} from step {run.position.step:,} on; it was {before} before")

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Tell what is trained, and show the bar if somebody can see it."""
        self._metrics = ["loss", *run.loss.metrics]
        self._first_step = run.position.step
        self._started = self._told_at = time.monotonic()
        say(introduction(run))
        for table in run.tables:
            say(table)
        if sys.stderr.isatty() and not run.sweep:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns  # 0 where nobody told the terminal its size
            self._bar = Bar(
                desc=_epoch(run, run.position.step // run.steps_per_epoch),
                total=run.steps,
                initial=run.position.step,
                file=sys.stderr,
                ncols=None if columns else 80,
                dynamic_ncols=columns > 0,
                mininterval=0.2,
                miniters=1,
                bar_format="{desc}|{bar}| {n_fmt}/{total_fmt}, {images_rate}, {remaining} left{postfix}",
            )
            self._bar.images = run.options.run.batch * run.options.run.accumulate
            self._advance = self._bar.update

    @hookimpl
    def on_stage_start(self, run: Run) -> None:
        """Tell which stage begins, if there are several, and how much trains in it."""
        if len(run.stages) == 1:
            return
        number, steps = run.position.stage + 1, f"{run.position.begun + 1:,} to {run.stage_end:,}"
        early = " at most" if run.stage.patience is not None else ""
        trains = sum(parameter.numel() for parameter in run.parameters)
        text = (
            f"stage {number} of {len(run.stages)}, {run.stage.name}: steps {steps}{early}, {trains:,} parameters train"
        )
        if self._bar is None:
            say(text)
        else:
            self._bar.write(text, file=sys.stderr)
            self._bar.total = run.steps

    @hookimpl
    def on_epoch_start(self, run: Run, epoch: int) -> None:
        """Name the epoch on the bar."""
        if self._bar is not None:
            self._bar.set_description_str(_epoch(run, epoch), refresh=False)

    @hookimpl
    def on_step_end(self, run: Run, loss: Tensor, applied: Tensor) -> None:
        """Move the bar; it draws itself a few times a second."""
        self._advance()

    @hookimpl
    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        """Take up the numbers; tell them if nothing was told for a while."""
        self._shown.update(scalars)
        if self._bar is not None:
            self._bar.set_postfix_str(self._words(), refresh=False)
        elif time.monotonic() - self._told_at >= self._every:
            self._tell(run)

    @hookimpl
    def on_evaluate_end(self, run: Run, scalars: dict[str, float]) -> None:
        """Tell the evaluation."""
        self._shown.update(scalars)
        if self._bar is not None:
            self._bar.set_postfix_str(self._words())
        else:
            self._tell(run)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """Tell how the epoch went, if an evaluation did not already."""
        if self._bar is None and self._told_step != run.position.step:
            self._tell(run)

    @hookimpl
    def on_fit_end(self, run: Run, outcome: str) -> None:
        """Tell how it ended and where everything is."""
        if self._bar is not None:
            self._bar.close()
            self._bar, self._advance = None, _nothing
        line = f"{outcome}: {run.position.step:,} steps, {_clock(time.monotonic() - self._started)}"
        if run.best.score is not None:
            line += f"; best test {run.best.name} {_value(run.best.name, run.best.score)} at step {run.best.step:,}"
        say(f"{line}; run folder {near(run.out)}")
        if "tensorboard" in run.options.observe and not run.sweep:  # of a sweep one watches all runs together
            say(f"watch: tensorboard --logdir {shlex.quote(near(run.out))}")

    def _tell(self, run: Run) -> None:
        step = run.position.step
        self._told_at, self._told_step = time.monotonic(), step
        line = f"epoch {math.ceil(step / run.steps_per_epoch)}/{_epochs(run)}  step {step}/{run.steps}  {self._words()}"
        if rate := self._shown.get("speed/images_per_second"):
            line += f"  {rate:,.0f} images/s"
        if step > self._first_step:
            per_step = (self._told_at - self._started) / (step - self._first_step)
            line += f"  {_clock(per_step * (run.steps - step))} left"
        say(line)

    def _words(self) -> str:
        tags = [f"train/{name}" for name in self._metrics]
        tags += [f"test/{name}" for name in self._metrics[1:] or self._metrics]  # the loss only if it has no metrics
        words = []
        for tag in tags:
            if tag in self._shown:
                split, _, name = tag.partition("/")
                words.append(f"{'test ' if split == 'test' else ''}{name} {_value(name, self._shown[tag])}")
        if skipped := self._shown.get("train/skipped"):
            words.append(f"skipped {skipped:.0f}")
        return "  ".join(words)


def introduction(run: Run) -> str:
    """Return one line: what is trained, in which numbers unless in float32, on what, where and for how long."""
    size = "x".join(str(side) for side in run.source.shape)
    classes = f", {len(run.source.classes)} classes" if run.source.classes else ""
    cores = torch.get_num_threads()
    threads = f", {cores} thread{'s' * (cores > 1)}" if run.device.type == "cpu" else ""
    precision, remark = run.choices.get("precision", "float32"), run.precision.remark
    numbers = "" if precision == "float32" else f" in {precision}{f' ({remark})' if remark else ''}"
    resumed = f", from step {run.position.step:,}" if run.position.step else ""
    return (
        f"training {run.choices['model']} ({sum(p.numel() for p in run.model.parameters()):,} parameters){numbers} "
        f"on {run.choices['data']} ({len(run.source):,} images of {size}{classes}), "
        f"{run.device}{threads}, {run.steps:,} steps in {_epochs(run)} epoch{'s' * (_epochs(run) > 1)}{resumed}"
    )


def _epoch(run: Run, epoch: int) -> str:
    return f"epoch {epoch + 1}/{_epochs(run)} "


def _epochs(run: Run) -> int:
    return math.ceil(run.steps / run.steps_per_epoch)


def _value(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name.endswith("accuracy") else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _nothing() -> None:
    """Stand in for the bar's update where there is no bar."""
