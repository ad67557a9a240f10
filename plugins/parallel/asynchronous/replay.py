"""Repeats in one process what an asynchronous run did, in the order of its trace: to see why it did it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import Batch, UsageError
from engine.interfaces import Precision
from engine.loader import Loader, Position, Step
from engine.randomness import Key

from .applying import Applying, require_unrounded
from .dealing import counted
from .rules import Push, Rules, Taken
from .trace import Update, read


@dataclass
class Copy:
    """Weights and buffers: what a worker had, or the server at some version."""

    weights: list[Tensor]
    buffers: list[Tensor]


@dataclass(frozen=True)
class Turn:
    """A step's turn: which worker made it, and whether its push ends with it."""

    worker: int
    taken: Taken
    last: bool


class Replay(Applying):
    """Makes every update from the weights that its worker had, so that the run ends with the recorded one's weights.

    Bit for bit, with as many compute threads. Past weights are kept for as long as a later step is made from them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(Rules())
        self._path = path
        self._facts: dict[str, Any] = {}
        self._updates: list[Update] = []
        self._workers: dict[int, Copy] = {}
        self._past: dict[int, Copy] = {}  # by version
        self._last_use: dict[int, int] = {}  # by version: the update that is the last to be made from it
        self._total: list[Tensor | None] = []
        self._turn: Turn | None = None

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Take up the optimiser, and read the trace. Raises UsageError for what is none."""
        super().prepare(optimizer, key)
        self._facts, self._updates = read(self._path)
        self.rules = Rules(**self._facts["rules"])
        for number, update in enumerate(self._updates):
            self._last_use |= {taken.version: number for taken in update.steps if taken.age == 0}

    def steps(self, loader: Loader, position: Position) -> Generator[Step]:
        """Yield the steps in the order in which they were applied."""
        self._require_same_run(loader, position)
        self._keep()
        starts = (Position(turn.taken.step, turn.taken.sample) for turn in self._turns())
        for made, (turn, step) in enumerate(zip(self._turns(), loader.steps_at(starts), strict=True)):
            self._turn = turn
            where = counted(loader, position, made)
            start = Position(turn.taken.step, turn.taken.sample)
            yield replace(step, start=start, end=where.end, epoch=where.epoch, epochs_done=where.epochs_done)

    def _turns(self) -> Iterator[Turn]:
        for update in self._updates:
            for index, taken in enumerate(update.steps):
                yield Turn(update.worker, taken, index == len(update.steps) - 1)

    def _require_same_run(self, loader: Loader, position: Position) -> None:
        if position.step:
            raise UsageError(
                "parallel=async_replay repeats a run from its beginning: leave out resume, give another out="
            )
        ours = {"steps": self.length, "samples": loader.count, "key": self.key.value}
        words = {"steps": "run.steps or run.epochs", "samples": "run.batch or run.accumulate", "key": "run.seed"}
        for name, value in ours.items():
            if self._facts[name] != value:
                raise UsageError(
                    f"parallel.trace={self._path} was recorded with another {words[name]} ({self._facts[name]}, here "
                    f"{value}): give the recorded run's options"
                )

    @torch.no_grad()
    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Compute a step from the weights that its worker had; with the last one of a push, put the gradients in place.

        Whatever was computed, the model then has the server's weights again.
        """
        assert self._turn is not None, "steps come before what is done with them"
        worker, taken, ours = self._turn.worker, self._turn.taken, self._copy()
        if taken.age == 0:
            past = self._past[taken.version]
            self._workers[worker] = Copy(past.weights, past.buffers)
        theirs = self._workers[worker]
        self._show(theirs)
        with torch.enable_grad():
            loss = super().forward_backward(loss_of, batches, weight)
        theirs.buffers = [buffer.clone() for buffer in self.buffers]
        self._add_up()
        self._show(ours)
        if self._turn.last:
            self.take(Push(worker, self._steps_of_push(), self._total, theirs.buffers, then=theirs.weights))
            self._total = []
        return loss

    def _steps_of_push(self) -> list[Taken]:
        return self._updates[self.version].steps

    def _add_up(self) -> None:
        """Add the gradients to those of the push's steps before, as a worker does."""
        gradients = [parameter.grad for parameter in self.trained]
        for parameter in self.trained:
            parameter.grad = None
        if not self._total:
            self._total = list(gradients)
            return
        for index, gradient in enumerate(gradients):
            if gradient is not None:
                before = self._total[index]
                self._total[index] = gradient if before is None else before.add_(gradient)

    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply a push, and keep the weights if a later step is made from them."""
        require_unrounded(precision, "parallel=async_replay")
        applied = self._taken
        super().update(precision, optimizer, bad)
        if applied:
            self._keep()

    def _keep(self) -> None:
        self._past = {v: copy for v, copy in self._past.items() if self._last_use[v] >= self.version}
        if self._last_use.get(self.version, -1) >= self.version:
            self._past[self.version] = self._copy()

    def _copy(self) -> Copy:
        return Copy([p.detach().clone() for p in self.trained], [buffer.clone() for buffer in self.buffers])

    def _show(self, copy: Copy) -> None:
        """Put weights and buffers into the model."""
        torch._foreach_copy_([*self.trained, *self.buffers], [*copy.weights, *copy.buffers])

    def describe(self) -> str:
        """Return in a line what is repeated."""
        return f"replays the asynchronous run of {self._path}"
