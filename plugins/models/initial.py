"""Initial weights as the papers draw them, for networks whose layers are torch's."""

from __future__ import annotations

from typing import Literal

from torch import nn

Layer = nn.Conv2d | nn.Linear


def gaussian(layer: Layer, deviation: float, bias: float = 0.0) -> None:
    """Draw weights with mean 0 and that standard deviation; all biases are ``bias``."""
    nn.init.normal_(layer.weight, 0.0, deviation)
    _set_bias(layer, bias)


def xavier(layer: Layer, bias: float = 0.0) -> None:
    """Draw weights uniformly from +-sqrt(3 / fan-in), which is what Caffe calls "xavier"; all biases are ``bias``."""
    bound = (3 / layer.weight[0].numel()) ** 0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    _set_bias(layer, bias)


def glorot(layer: Layer) -> None:
    """Draw weights uniformly from +-sqrt(6 / (fan-in + fan-out)) (Glorot and Bengio 2010); biases are 0."""
    nn.init.xavier_uniform_(layer.weight)
    _set_bias(layer, 0.0)


def he(layer: Layer, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Draw weights with mean 0 and variance 2 / fan (He et al. 2015, "Delving deep into rectifiers"); biases are 0."""
    nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
    _set_bias(layer, 0.0)


def layers_of(model: nn.Module) -> list[Layer]:
    """Return the convolutions and linear layers of a model, in its own order."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def _set_bias(layer: Layer, value: float) -> None:
    if layer.bias is not None:
        nn.init.constant_(layer.bias, value)
