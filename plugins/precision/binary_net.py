"""Weights and activations of one bit: BinaryNet (Courbariaux et al. 2016) and XNOR-Net (Rastegari et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.binary.conversion import Conversion, binarize, binary_weights

from .one_bit import OneBitWeights


class BinaryNet(OneBitWeights):
    """Layers compute with the signs of weights and activations; a gradient passes a sign of what is within -1..1.

    Courbariaux, Hubara, Soudry, El-Yaniv, Bengio, "Binarized neural networks: training deep neural networks with
    weights and activations constrained to +1 or -1", 2016. The model is an ordinary one with ReLU or Hardtanh modules,
    which become signs where a layer of one bit reads them (``engine.binary.conversion``); a layer behind another that
    reads none is refused. The paper's order is layer, perhaps maximum pooling, BatchNorm, activation, perhaps dropout;
    after the last layer BatchNorm alone, for the squared hinge loss. Its first layer reads 8-bit images. What has no
    BatchNorm in front of its sign learns badly.
    """

    def __init__(self, conversion: Conversion, scale_lr: bool) -> None:
        super().__init__(scale_lr)
        self._conversion = conversion
        self._hooks: list[RemovableHandle] = []
        self._outside = torch.zeros(2, dtype=torch.float64)  # of watched steps: activations beyond -1..1, all

    def convert(self, model: nn.Module) -> nn.Module:
        """Return the model with layers and activations of one bit. Raises UsageError naming what cannot be."""
        for hook in self._hooks:
            hook.remove()
        model = binarize(model, self._conversion)
        self.weights = binary_weights(model)
        model = super().convert(model)
        self._outside = torch.zeros(2, dtype=torch.float64, device=self.device)
        signs = [module for module in model.modules() if getattr(module, "sign_activation", False)]
        self._hooks = [module.register_forward_pre_hook(self._look) for module in signs]
        return model

    def export(self, model: nn.Module) -> nn.Module:
        """Return the model with layers and activations of one bit."""
        model = binarize(model, self._conversion)
        self.weights = binary_weights(model)
        return super().export(model)

    def telemetry(self) -> dict[str, Tensor]:
        """Return also the share of activations through which no gradient passes, in watched steps."""
        outside, seen = self._outside.unbind()
        self._outside = torch.zeros_like(self._outside)
        return super().telemetry() | {"precision/outside_window": outside / seen.clamp(min=1)}

    def _look(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Count the activations of a watched step."""
        if self.watched and module.training and torch.is_grad_enabled():
            x = inputs[0].detach()
            self._outside[0] += (x.abs() > 1).sum()
            self._outside[1] += x.numel()


class XNORNet(BinaryNet):
    """As BinaryNet, but sums are multiplied with the mean magnitude of their weights, which is differentiated too.

    Rastegari, Ordonez, Redmon, Farhadi, "XNOR-Net: ImageNet classification using binary convolutional neural networks",
    2016. The paper's order is BatchNorm, activation, layer, perhaps pooling, and its first and last layers are real;
    BinaryNet's order works as well. Left out, as in the authors' code, is the scale K of the inputs; and what that code
    adds to the paper, subtracting filters' means.
    """
