"""The same training in four loops: by hand, by this engine, by PyTorch Lightning and by Ignite.

All begin with the same weights, take the same ready batches from memory and make the same updates: fused SGD with
momentum. The learning rate and the batch sizes are powers of two, so that a mean loss and a summed one divided by the
batch size round alike and all loops end with the same weights, to the last bit.
"""

from __future__ import annotations

import copy
import io
import os
import pty
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LR, MOMENTUM = 2.0**-7, 0.875


@dataclass(frozen=True)
class Work:
    """What to train: a network, ready batches (used in turn), and how many steps: ``skipped`` ones, then timed ones.

    The network is on the CPU, the batches are where it is trained. ``settle`` is called right before the timing begins.
    """

    network: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]
    steps: int
    skipped: int
    clock: Callable[[], float] = time.perf_counter
    settle: Callable[[], object] = lambda: None

    @property
    def device(self) -> torch.device:
        """Where the loops train."""
        return self.batches[0][0].device

    @property
    def length(self) -> int:
        """Steps in all; the one after the last timed step makes the loop ask for a batch, which ends the timing."""
        return self.skipped + self.steps + 1

    def fresh(self) -> nn.Module:
        """Return a copy of the network, in its first state, on the device."""
        return copy.deepcopy(self.network).to(self.device)

    def feed(self, items: Sequence[Any] | None = None) -> Feed:
        """Return the batches, or ``items`` made of them, as a loop takes them."""
        return Feed(self.batches if items is None else items, self)


Loop = Callable[[Work], tuple[float, nn.Module]]
"""Trains a copy of a work's network; returns seconds per timed step, and the copy."""


class Feed:
    """Hands out batches and looks at the clock as it does: the one stopwatch of every loop."""

    def __init__(self, items: Sequence[Any], work: Work) -> None:
        self._items, self._work = items, work
        self._begun = self._ended = float("nan")

    def __len__(self) -> int:
        return self._work.length

    def __iter__(self) -> Iterator[Any]:
        items, clock = self._items, self._work.clock
        first, last = self._work.skipped, self._work.skipped + self._work.steps
        for number in range(self._work.length):
            if number == first:
                self._work.settle()
                self._begun = clock()
            elif number == last:
                self._ended = clock()
            yield items[number % len(items)]

    @property
    def seconds(self) -> float:
        """Seconds per step, from asking for the first timed batch to asking for the one after the last."""
        return (self._ended - self._begun) / self._work.steps


class Terminal(io.StringIO):
    """A terminal that shows nothing, so that every loop draws its progress bar whatever stdout is."""

    def __init__(self) -> None:
        super().__init__()
        self._ends = pty.openpty()

    def isatty(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return a terminal to ask for its size."""
        return self._ends[1]

    def write(self, text: str) -> int:
        """Forget the text."""
        return len(text)

    def close(self) -> None:
        """Give the terminal back."""
        for end in self._ends:
            os.close(end)
        self._ends = ()  # type: ignore[assignment]
        super().close()


@contextmanager
def stage() -> Iterator[str]:
    """Within ``with``, output goes to a terminal that shows nothing; gives a folder that is removed afterwards."""
    before = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder, Terminal() as terminal:
        sys.stdout = sys.stderr = terminal
        try:
            yield folder
        finally:
            sys.stdout, sys.stderr = before
