"""What augmentations draw, made of keyed uniform numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine import Key, UsageError, uniform


def between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Return uniform numbers of [0, 1) as float64 between ``low`` and ``high``."""
    return low + numbers.double() * (high - low)


def below(numbers: Tensor, counts: Tensor | Sequence[int] | int) -> Tensor:
    """Return uniform numbers of [0, 1) as int64 from 0 to ``counts`` - 1, each equally likely."""
    # In float64, where a number below 1 times a count cannot round up to that count.
    factors = counts.numpy() if isinstance(counts, Tensor) else counts
    return torch.from_numpy(np.multiply(numbers.numpy(), factors, dtype=np.float64).astype(np.int64))


def log_between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Return uniform numbers of [0, 1) as float64 between ``low`` and ``high``, their logarithm uniform."""
    ends = torch.tensor([low, high], dtype=torch.float64).log().tolist()
    return between(numbers, ends[0], ends[1]).exp()


def normal(key: Key, samples: Tensor, draws: int) -> Tensor:
    """Return float32 [n, draws], standard normal numbers; row i depends on (key, samples[i]) alone."""
    return as_normal(uniform(key, samples, 2 * ((draws + 1) // 2)))[:, :draws]


def as_normal(numbers: Tensor) -> Tensor:
    """Return standard normal numbers, one for each of [n, 2m] uniform ones of [0, 1) (Box and Muller 1958).

    As these are multiples of 2^-24, none is beyond 5.8.
    """
    radius, turn = numbers.chunk(2, 1)
    length = (-2 * torch.log1p(-radius)).sqrt()
    angle = 2 * torch.pi * turn
    return torch.cat([length * angle.cos(), length * angle.sin()], 1)


def span(option: str, values: Sequence[float], *, around: float, low: float, high: float) -> tuple[float, float]:
    """Return the smallest and largest value that an option means: one number is the distance from ``around``.

    No values mean ``around`` alone. Raises UsageError naming the option unless they are in order, from ``low`` to
    ``high``.
    """
    if not values:
        return around, around
    if len(values) == 1:
        if values[0] < 0:
            raise UsageError(f"augment.{option}={list(values)}: a single number is a distance, so it is at least 0")
        return checked(option, (max(around - values[0], low), around + values[0]), low, high)
    return checked(option, values, low, high)


def checked(option: str, values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """Return two values. Raises UsageError naming the option unless they are in order, from ``low`` to ``high``."""
    if len(values) != 2 or not low <= values[0] <= values[1] <= high:
        limits = f"from {low:g} to {high:g}" if high < float("inf") else f"at least {low:g}"
        raise UsageError(f"augment.{option}={list(values)}: give [smallest, largest], in this order, {limits}")
    return values[0], values[1]
