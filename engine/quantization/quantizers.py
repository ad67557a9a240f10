"""Quantisers: pure functions from a tensor and a draw to the tensor in fewer bits; and the roles that ask for one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.ops.rounding import round_dynamic, round_fixed, round_float16


class Role(StrEnum):
    """What a tensor is for, as far as its numbers may differ from others'.

    A parameter's name is given with all but the last two, which have a layer's, followed by ".input" or ".output":
    what it reads, what it returns, and the gradients of those.
    """

    WEIGHT = "weight"  # filters and matrices, as forward and backward passes compute with them
    BIAS = "bias"  # vectors (biases, normalisation), likewise
    STORED_WEIGHT = "stored_weight"  # what a parameter is kept in between steps
    WEIGHT_GRADIENT = "weight_gradient"  # of a parameter, before the loss scale is taken out
    UPDATE = "update"  # what an optimiser's step adds to a parameter
    OPTIMIZER_STATE = "optimizer_state"  # momentum and the like, of a parameter's shape
    ACTIVATION = "activation"
    ACTIVATION_GRADIENT = "activation_gradient"


class Draw(NamedTuple):
    """What the random bits of a rounding depend on, beside the place of each element.

    key: of the tensor (64 bits). step: int64 [1] on the tensor's device. offset: the number of its first element, as
    for a share of a batch. random: False asks a stochastic quantiser for its value without chance, as evaluations do.
    """

    key: int
    step: Tensor | int
    offset: int = 0
    random: bool = True


class Quantizer(Protocol):
    """A pure function of (tensor, draw): equal arguments give equal bits, and no generator is touched.

    What it gives it leaves as it is when it is given that again. Two that compare equal give numbers of the same grid:
    a layer's input that an equal one has rounded is not rounded again. Identity, the default, is always right.
    """

    def __call__(self, x: Tensor, draw: Draw, out: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
        """Return the quantised tensor, written to ``out`` (perhaps x itself) if given; ``x`` stays as it is else.

        counts: int64 [5] that is added to, as ``engine.ops.rounding.COUNTS`` says; a quantiser may leave it alone.
        """
        ...


@dataclass(frozen=True)
class FixedPoint(Quantizer):
    """Multiples of 2^-fl from -2^(il-1) to 2^(il-1) - 2^-fl, il + fl bits with the sign (Gupta et al. 2015).

    rounding: "nearest" or "stochastic". Raises UsageError for a format that float32 cannot carry.
    """

    il: int
    fl: int
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        round_fixed(torch.zeros(1), self.il, self.fl, mode=self.rounding)  # it knows what cannot be

    def __call__(self, x: Tensor, draw: Draw, out: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
        """Return the rounded tensor."""
        mode = self.rounding if draw.random else "nearest"
        return round_fixed(
            x, self.il, self.fl, mode=mode, key=draw.key, step=draw.step, offset=draw.offset, out=out, counts=counts
        )


@dataclass(eq=False)
class DynamicFixedPoint(Quantizer):
    """Fixed point of ``bits`` bits with the sign, within plus and minus 2^exponent (Courbariaux et al. 2015).

    exponent: int32 [1] on the device of what is rounded, read at each rounding. The range is symmetric, as the authors'
    code has it. Both may be changed between roundings.
    """

    bits: int
    exponent: Tensor
    rounding: str = "nearest"

    def __call__(self, x: Tensor, draw: Draw, out: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
        """Return the rounded tensor."""
        mode = self.rounding if draw.random else "nearest"
        return round_dynamic(
            x, self.bits, self.exponent, symmetric=True, mode=mode, key=draw.key, step=draw.step, offset=draw.offset,
            out=out, counts=counts,
        )  # fmt: skip


class Half(Quantizer):
    """IEEE half precision, to the nearest number; beyond 65,504 infinite. What carries it stays float32."""

    def __call__(self, x: Tensor, draw: Draw, out: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
        """Return the rounded tensor."""
        return round_float16(x, out=out, counts=counts)
