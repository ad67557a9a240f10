"""Where layers are under a machine's roofline (Williams, Waterman, Patterson 2009, "Roofline")."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch

from engine.measuring import race

SIDE = 1024  # of the matrices whose product is the arithmetic's ceiling
ADDED = 2**23  # numbers of each of three vectors, whose sum is the memory's
SECONDS, ROUNDS = 0.2, 50


@dataclass(frozen=True)
class Ceilings:
    """Operations and bytes per second, at most."""

    flops: float
    bandwidth: float

    @property
    def ridge(self) -> float:
        """Operations per byte, above which arithmetic is the limit."""
        return self.flops / self.bandwidth

    def bound(self, multiply_adds: float, moved: float) -> str:
        """Return "compute" or "memory": what limits a layer of so many multiply-adds and bytes."""
        return "compute" if 2 * multiply_adds / max(moved, 1) >= self.ridge else "memory"


def ceilings(device: torch.device, flops: float, bandwidth: float) -> Ceilings:
    """Return the ceilings that are given, or else measured: a matrix product and a sum of vectors, in float32."""
    return Ceilings(flops or _flops(device), 1e9 * bandwidth or _bandwidth(device))


def _flops(device: torch.device) -> float:
    square = torch.ones(SIDE, SIDE, device=device)
    return 2 * SIDE**3 / (1e-3 * median(race({"product": lambda: square @ square}, SECONDS, ROUNDS)["product"]))


def _bandwidth(device: torch.device) -> float:
    one, two, three = torch.ones(3, ADDED, device=device)
    times = race({"sum": lambda: torch.add(one, two, out=three)}, SECONDS, ROUNDS)["sum"]
    return 3 * 4 * ADDED / (1e-3 * median(times))
