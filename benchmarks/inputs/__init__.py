"""What benchmarks/data.py measures: how fast images become batches, here and in the loaders that people use.

Every side hands out batches of the same size, of the same images in random order, as float32 unless its name says
otherwise, to a consumer that does nothing with them. A side's figure is its steady rate: batches are handed over before
the clock starts, and the workers of one side are idle when another begins.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Report, Spread, Times

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, in numbers from 0 to 1
EIGENVALUES = (0.2175, 0.0188, 0.0045)  # of their covariance, as fb.resnet.torch and many after it have them
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
WORKERS = 2  # processes of a DataLoader, or threads of the engine


@dataclass(frozen=True)
class Bench:
    """What the sections share. folder: theirs, for as long as the benchmark runs. rounds: 0 for their own number."""

    report: Report
    folder: Path
    quick: bool
    rounds: int = 0

    def pick(self, quick: Any, full: Any) -> Any:
        """Return what fits the benchmark's form."""
        return quick if self.quick else full

    def turns(self, quick: int, full: int) -> int:
        """Return how many rounds to compare for."""
        return self.rounds or self.pick(quick, full)


@dataclass(frozen=True)
class Turn:
    """How many batches, of how many images, a side hands over in a turn: some before the clock starts, then counted."""

    batch: int
    skipped: int
    counted: int

    def per_image(self, batches: Iterator[Any]) -> float:
        """Return the seconds per image of a steady stream of batches: from having one to having a later one."""
        for _ in range(self.skipped):
            next(batches)
        begun = time.perf_counter()
        for _ in range(self.counted):
            next(batches)
        return (time.perf_counter() - begun) / (self.counted * self.batch)


def rates(times: Times, side: str, digits: int = 0) -> str:
    """Return a side's images per second, from its seconds per image."""
    return Spread.of([1 / seconds for seconds in times[side]]).text(1, digits)


def show(report: Report, title: str, times: Times, beside: Sequence[str]) -> None:
    """Print what each side hands out, and how many times as much as the sides named in ``beside``."""
    heads = ["side", "images/s", *(f"times {name}" for name in beside)]
    rows = [[side, rates(times, side), *(times.ratio(name, side).text(1, 2) for name in beside)] for side in times]
    report.table(title, heads, rows)
