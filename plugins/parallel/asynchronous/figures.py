"""What is told of asynchronous training: staleness, who comes and goes, how fast each worker is."""

from __future__ import annotations

import time
from collections import Counter

import torch
from torch import Tensor

PERCENTILES = (50, 90, 99)
BINS = 8  # of the staleness histogram: 0, 1, .. and all from the last on


class Figures:
    """Counts, some since the last reading, some since the run began."""

    def __init__(self) -> None:
        self.joins = self.deaths = 0
        self.staleness: list[int] = []  # of each push applied since the last reading
        self._rates: list[float] = []
        self._dropped = 0
        self._steps: Counter[int] = Counter()  # by worker
        self._waited = 0.0
        self._since = time.perf_counter()

    def applied(self, slot: int, staleness: int, rate: float, steps: int) -> None:
        """Take note of a push that was applied, of so many steps, at ``rate`` times the learning rate."""
        self.staleness.append(staleness)
        self._rates.append(rate)
        self._steps[slot] += steps

    def dropped(self) -> None:
        """Take note of a push that was too stale."""
        self._dropped += 1

    def waited(self, seconds: float) -> None:
        """Take note of how long the server had nothing to do."""
        self._waited += seconds

    def read(self, slots: list[int], device: torch.device) -> dict[str, Tensor]:
        """Return the scalars by tag; ``slots`` are those of the workers that are there. Counting starts anew."""
        now = time.perf_counter()
        seconds, self._since = max(now - self._since, 1e-9), now
        pushes = len(self.staleness)
        values = {
            "async/workers": float(len(slots)),
            "async/joins": float(self.joins),
            "async/deaths": float(self.deaths),
            "async/dropped_share": self._dropped / max(1, pushes + self._dropped),
            "async/idle_share": self._waited / seconds,
        }
        if pushes:
            values["async/rate_multiplier"] = sum(self._rates) / pushes
            values |= histogram(self.staleness)
        values |= {f"async/steps_per_second/worker_{slot}": self._steps[slot] / seconds for slot in slots}
        self.staleness, self._rates, self._dropped, self._waited = [], [], 0, 0.0
        self._steps.clear()
        return {tag: torch.tensor(value, dtype=torch.float64, device=device) for tag, value in values.items()}


def histogram(staleness: list[int]) -> dict[str, float]:
    """Return mean, percentiles, maximum and the shares of the values 0, 1, ... of ``staleness``, by tag.

    The p-th percentile is the smallest value that at least p % of all do not exceed.
    """
    ordered, count = sorted(staleness), len(staleness)
    values = {"async/staleness/mean": sum(ordered) / count, "async/staleness/max": float(ordered[-1])}
    for percent in PERCENTILES:
        values[f"async/staleness/p{percent}"] = float(ordered[-(-percent * count // 100) - 1])
    bins = Counter(min(value, BINS) for value in ordered)
    for value in range(BINS + 1):
        name = f"{value}" if value < BINS else f"{BINS}_or_more"
        values[f"async/staleness_share/{name}"] = bins[value] / count
    return values
