"""Sums kept on the device, read once per log interval, and the best evaluation so far."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.interfaces import Strategy
from engine.loader import Position
from engine.preparation import Spent

MOST_KEPT = 64  # batches whose numbers wait to be added up


class Metrics:
    """The loss and a loss function's metrics, summed over samples until ``read`` turns them into means.

    Adding neither waits for the device nor gives it work: a batch's scalars are kept, and added up some dozens at a
    time. Sums are float64, and the same to the last bit however many were kept. With ``masked``, what a step adds
    counts only once ``settle`` has told that the step was applied.
    """

    def __init__(
        self, split: str, names: Sequence[str], device: torch.device, strategy: Strategy, masked: bool = False
    ) -> None:
        self.names = tuple(f"{split}/{name}" for name in ("loss", *names))
        self._sums = torch.zeros(len(self.names) + 1, dtype=torch.float64, device=device)  # the last cell: samples
        self._kept: list[tuple[Tensor, ...]] = []  # a row for each batch not added yet: loss, metrics, samples
        self._applied: list[Tensor] = []  # of the first of these rows, as far as that is known
        self._masked = masked
        self._counts: dict[int, Tensor] = {}
        self._strategy = strategy

    def add(self, loss: Tensor, measures: Sequence[Tensor], samples: int) -> None:
        """Take a batch's summed loss and summed metrics: scalars on the device that nobody changes afterwards."""
        count = self._counts.get(samples)
        if count is None:
            count = self._counts[samples] = torch.tensor(float(samples), dtype=torch.float64, device=self._sums.device)
        self._kept.append((loss.detach(), *measures, count))
        if len(self._kept) >= MOST_KEPT:
            self.add_up()

    def settle(self, applied: Tensor) -> None:
        """End a step: what it added does not count if it was masked (``applied`` False, a bool on the device)."""
        if self._masked:
            self._applied += [applied] * (len(self._kept) - len(self._applied))

    @property
    def sums(self) -> Tensor:
        """The sums so far, float64: loss, metrics, samples."""
        self.add_up()
        return self._sums

    def add_up(self) -> None:
        """Add the kept numbers up now, as far as it is known whether they count."""
        ready = len(self._applied) if self._masked else len(self._kept)
        if not ready:
            return
        columns = [torch.stack(column).to(torch.float64) for column in zip(*self._kept[:ready], strict=True)]
        rows = torch.stack(columns, dim=1)
        if self._masked:
            rows = torch.where(torch.stack(self._applied)[:, None], rows, 0.0)
        (add_each if rows.is_cuda else add_by_scan)(self._sums, rows)
        del self._kept[:ready]
        self._applied.clear()

    def read(self, also: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """Return the means over all processes, plus the scalars in ``also``, in one transfer; then start anew.

        Means are tagged with the split ("train/loss"); over no samples they are NaN.
        """
        extras = [value.detach().to(torch.float64).reshape(1) for value in (also or {}).values()]
        numbers = torch.cat([self._strategy.sum(self.sums.clone()), *extras]).tolist()
        self._sums.zero_()
        places = len(self.names)
        samples = numbers[places]
        means = [total / samples if samples else math.nan for total in numbers[:places]]
        return dict(zip((*self.names, *(also or {})), (*means, *numbers[places + 1 :]), strict=True))


# Two ways to the same bits, one row after the other: a sum in any other order would depend on how many rows there are.


def add_by_scan(sums: Tensor, rows: Tensor) -> None:
    """Add rows to ``sums``, in place, on a CPU: a tenth of the other's time."""
    sums.copy_(torch.cat([sums[None], rows]).cumsum(0)[-1])


def add_each(sums: Tensor, rows: Tensor) -> None:
    """Add rows to ``sums``, in place, anywhere: torch's scan on a GPU is refused in deterministic mode."""
    for row in rows:
        sums.add_(row)


@dataclass
class Best:
    """The best evaluation so far, of the metric that early stopping and ``save.best`` watch.

    stale: how many evaluations in a row have brought nothing: none was better than the best of the present stage.
    """

    name: str
    higher_is_better: bool
    score: float | None = None
    step: int = 0
    stale: int = 0
    stage: float | None = None  # the best score of the present stage
    latest: float | None = None
    latest_step: int = -1

    def take(self, score: float, step: int) -> bool:
        """Take note of an evaluation after ``step`` steps; return whether it is the best (finite, that is)."""
        self.latest, self.latest_step = (score if math.isfinite(score) else None), step
        sign = 1 if self.higher_is_better else -1
        if self.latest is not None and (self.stage is None or sign * score > sign * self.stage):
            self.stage, self.stale = score, 0
        else:
            self.stale += 1
        if self.latest is not None and (self.score is None or sign * score > sign * self.score):
            self.score, self.step = score, step
            return True
        return False

    def begin_anew(self) -> None:
        """Begin a stage, whose evaluations are compared with each other alone."""
        self.stage, self.stale = None, 0


class Clock:
    """Measures, between two readings, throughput and what batches took; time spent evaluating and saving left out."""

    def __init__(self) -> None:
        self.started = self._since = time.perf_counter()
        self._paused = 0.0
        self._position, self._waited, self._spent = Position(), 0.0, Spent()

    def start(self, position: Position, waited: float, spent: Spent) -> None:
        """Begin an interval at a position, with the loader's totals so far."""
        self._since, self._paused = time.perf_counter(), 0.0
        self._position, self._waited, self._spent = position, waited, replace(spent)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens within ``with`` out of the interval."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begun

    def read(self, position: Position, waited: float, spent: Spent) -> dict[str, float]:
        """Return images per second, the share of time waited for data and milliseconds a step; begin the next interval.

        The milliseconds are those of whoever made the batches, and of the training thread that waited for them.
        """
        elapsed = max(time.perf_counter() - self._since - self._paused, 1e-9)
        waited_now, before = waited - self._waited, self._spent
        milliseconds = 1000 / max(1, position.step - self._position.step)
        numbers = {
            "speed/images_per_second": (position.sample - self._position.sample) / elapsed,
            "speed/data_wait_share": waited_now / elapsed,
            "data/read_ms": (spent.read - before.read) * milliseconds,
            "data/decode_ms": (spent.decode - before.decode) * milliseconds,
            "data/augment_ms": (spent.augment - before.augment) * milliseconds,
            "data/wait_ms": waited_now * milliseconds,
        }
        self.start(position, waited, spent)
        return numbers
