"""How ``engine.ops.spectral`` cuts a convolution into transforms and products: lengths, memory, parts.

Everything follows from the shape alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from engine.kernels import ConvSpec
from engine.ops.algorithm import size_of

LIMIT = 1 << 30  # bytes: what a call may need besides its arguments and its result
FEWEST = 32  # summands of a matrix product: a sum is not cut into shorter ones while anything else can be cut
SMOOTH = (2, 3, 5, 7)  # the factors of lengths that are transformed fast


@dataclass(frozen=True)
class Placement:
    """Where an array's elements lie on the two circles: from where on, and how far apart."""

    first: tuple[int, int]
    step: tuple[int, int] = (1, 1)

    def places(self, size: torch.Size) -> tuple[slice, slice]:
        """Return the places of an array of ``size``, rows and columns."""
        rows, columns = (slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(self.first, size, self.step, strict=True))
        return rows, columns


@dataclass(frozen=True)
class Plan:
    """How a direction is computed: a product ``results x sums`` times ``sums x others`` for each group and frequency.

    groups, rows, columns, sums: how many; those of one part, after ``cut``.
    """

    circles: tuple[int, int]
    groups: int
    rows: int
    columns: int
    sums: int

    @property
    def frequencies(self) -> int:
        """Complex numbers of a spectrum: the other half follows from these."""
        return self.circles[0] * (self.circles[1] // 2 + 1)

    @property
    def matrices(self) -> bool:
        """Whether spectra are multiplied as matrices, frequency by frequency: not where all products are of numbers."""
        return self.columns > 1 or (self.rows > 1 and self.sums > 1)

    def peak(self, prepared: bool = False) -> int:
        """Return the most complex numbers that exist at a time, at most.

        To make spectra takes three times their memory (zeros around the array, the spectra, and either memory to
        transform in or the spectra as matrices), to make the result of its spectra four times.
        """
        right = 1 if prepared else 3
        spectra = 3 * self.rows * self.sums + right * self.sums * self.columns + 4 * self.rows * self.columns
        return self.groups * self.frequencies * spectra

    def cut(self, limit: int) -> Plan:
        """Return the sizes of parts that need ``limit`` complex numbers; or of the smallest parts.

        To cut the groups or the sums costs nothing; to cut rows, that all columns' spectra are computed once more for
        each part, and the other way round.
        """
        part = self
        while part.peak() > limit and part.peak() > replace(part, groups=1, rows=1, columns=1, sums=1).peak():
            if part.groups > 1:
                part = replace(part, groups=-(-part.groups // 2))
            elif part.sums > FEWEST or max(part.rows, part.columns) == 1:
                part = replace(part, sums=-(-part.sums // 2))
            elif part.rows >= part.columns:
                part = replace(part, rows=-(-part.rows // 2))
            else:
                part = replace(part, columns=-(-part.columns // 2))
        return part


@lru_cache(maxsize=4096)
def plan_of(spec: ConvSpec, direction: str) -> tuple[Plan, Plan]:
    """Return a direction's plan, and its parts."""
    circles = [
        smooth(max(size + pad, (kernel - 1) * gap + 1, (out - 1) * step + 1))
        for size, kernel, out, step, pad, gap in zip(
            spec.input_shape[2:], spec.kernel, spec.output_shape[2:], spec.stride, spec.padding, spec.dilation,
            strict=True,
        )
    ]  # fmt: skip
    channels, filters = spec.channels // spec.groups, spec.filters // spec.groups
    sizes = {
        "forward": (spec.batch, filters, channels),
        "backward_input": (spec.batch, channels, filters),
        "backward_weight": (filters, channels, spec.batch),
    }[direction]
    plan = Plan((circles[0], circles[1]), spec.groups, *sizes)
    return plan, plan.cut(LIMIT // (2 * size_of(spec)))


def smooth(least: int) -> int:
    """Return the least number from ``least`` on that has no prime factors but 2, 3, 5 and 7."""
    number = least
    while True:
        rest = number
        for factor in SMOOTH:
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return number
        number += 1
