"""Weights of one bit, activations of 32: BinaryConnect (Courbariaux, Bengio, David 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine import UsageError
from engine.quantization import Draw, FixedPoint, Quantizer, Role

from .one_bit import OneBitWeights

INTEGERS = FixedPoint(2, 0, "stochastic")


@dataclass(frozen=True)
class Sign(Quantizer):
    """+1 where x >= 0, else -1."""

    def __call__(self, x: Tensor, draw: Draw, out: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
        """Return the signs."""
        signs = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
        return signs if out is None else out.copy_(signs)


@dataclass(frozen=True)
class RandomSign(Quantizer):
    """+1 with the probability (x + 1) / 2, limited to 0 and 1, else -1; without chance x itself, their mean."""

    def __call__(self, x: Tensor, draw: Draw, out: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
        """Return the signs."""
        if not draw.random:
            return x.clone() if out is None else out.copy_(x)
        chance = ((x + 1) / 2).clamp_(0, 1)
        ones = INTEGERS(chance, draw, out=chance)  # 1 with that very chance, else 0
        return torch.sub(ones.mul_(2), 1, out=out)


class BinaryConnect(OneBitWeights):
    """Matrices and filters are their signs, forward and backward; the optimiser changes the real weights behind them.

    Courbariaux, Bengio, David, "BinaryConnect: training deep neural networks with binary weights during propagations",
    NIPS 2015. The gradient with respect to a sign is taken for that of its weight. stochastic: a sign is drawn in each
    step, +1 with probability hard_sigmoid(w), alike in all processes. Evaluations and exports take the signs where they
    are not stochastic, and the real weights where they are, as the paper does (its methods 1 and 2). Biases and
    normalisation stay real. The paper's networks: each layer, BatchNorm, ReLU; squared hinge loss; Adam.
    """

    def __init__(self, stochastic: bool, scale_lr: bool) -> None:
        super().__init__(scale_lr)
        self._sign = RandomSign() if stochastic else Sign()

    def convert(self, model: nn.Module) -> nn.Module:
        """Return the model. Raises UsageError if it has no matrices or filters."""
        self._find(model)
        return super().convert(model)

    def export(self, model: nn.Module) -> nn.Module:
        """Return the model as it is; ``evaluation_weights`` makes its weights signs."""
        self._find(model)
        return super().export(model)

    def quantizer(self, role: Role, name: str) -> Quantizer | None:
        """Return what makes, clips and scales weights."""
        if role == Role.WEIGHT and name in self.weights:
            return self._sign
        return super().quantizer(role, name)

    def _find(self, model: nn.Module) -> None:
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1}
        if not self.weights:
            raise UsageError("precision=binary_connect: the model has no matrix and no filters to binarise")
