"""What policies of one-bit weights have in common: real weights behind the signs, clipped, and what is told of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.loader import Position
from engine.quantization import Draw, Quantizer, Role, RoundedPrecision


@dataclass(frozen=True)
class Clip(Quantizer):
    """Limits to -1 to 1."""

    def __call__(self, x: Tensor, draw: Draw, out: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
        """Return the limited tensor."""
        return torch.clamp(x, -1, 1, out=out)


@dataclass(frozen=True)
class Scale(Quantizer):
    """Multiplies by a factor."""

    factor: float

    def __call__(self, x: Tensor, draw: Draw, out: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
        """Return the multiple."""
        return torch.mul(x, self.factor, out=out)


def glorot_coefficient(weight: Tensor) -> float:
    """Return sqrt(1.5 / (fan-in + fan-out)), as BinaryConnect's and BinaryNet's authors compute it for a layer."""
    inputs, outputs = weight[0].numel(), len(weight) * weight[0, 0].numel()
    return math.sqrt(1.5 / (inputs + outputs))


class OneBitWeights(RoundedPrecision):
    """Real weights that stay within -1 and 1, and of which passes see the sign; a subclass fills ``weights``.

    After every update they are clipped, so that none drifts to where it no longer flips. scale_lr: what the optimiser
    adds to them is divided by the layer's Glorot coefficient, as in the authors' code (``clipping_scaling`` in
    github.com/MatthieuCourbariaux/BinaryConnect and BinaryNet). Checkpoints and averages hold the real weights.
    """

    def __init__(self, scale_lr: bool) -> None:
        super().__init__()
        self.weights: dict[str, nn.Parameter] = {}  # those of one bit, by name
        self.watched = False
        self._scale_lr = scale_lr
        self._flips = torch.zeros(2, dtype=torch.float64)  # of watched steps: weights whose sign changed, all

    def quantizer(self, role: Role, name: str) -> Quantizer | None:
        """Return what clips and scales the weights of one bit."""
        if (weight := self.weights.get(name)) is None:
            return None
        if role == Role.UPDATE and self._scale_lr:
            return Scale(1 / glorot_coefficient(weight))
        return Clip() if role == Role.STORED_WEIGHT else None

    @contextmanager
    def computing(self, position: Position, watched: bool) -> Iterator[None]:
        """Within ``with``, parameters are what layers compute with.

        Watching is done here alone: noise and vanished updates of formats say nothing of signs and clipping.
        """
        self.watched = watched
        with super().computing(position, watched=False):
            yield

    @torch.no_grad()
    def update(self, optimizer: Optimizer, bad: Tensor) -> None:
        """Step unless ``bad`` is 1.0, scaled and clipped; in watched steps, count the signs that changed."""
        before = {name: weight >= 0 for name, weight in self.weights.items()} if self.watched else {}
        super().update(optimizer, bad)
        if before:
            self._flips = self._flips.to(self.device)
            self._flips[0] += sum((was != (self.weights[name] >= 0)).sum() for name, was in before.items())
            self._flips[1] += sum(was.numel() for was in before.values())

    def telemetry(self) -> dict[str, Tensor]:
        """Return the share of weights whose sign a watched step changed, and of those that are -1 or 1 now."""
        flips, seen = self._flips.unbind()
        self._flips = torch.zeros_like(self._flips)
        with torch.no_grad():
            clipped = torch.stack([(weight.abs() >= 1).sum() for weight in self.weights.values()]).sum()
        total = sum(weight.numel() for weight in self.weights.values())
        return {
            "precision/weight_flips": flips / seen.clamp(min=1),
            "precision/clipped_weights": clipped.double() / total,
        }
