"""What a packed network computes in float32: the very functions of torch that the layers call, so that bits agree.

An operation is ``OPERATIONS[name](x, arrays, settings)``: x is float32 [n, c, h, w] or [n, features], arrays are its
weights by role, settings plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Arrays = Mapping[str, Tensor]
Settings = Mapping[str, Any]


@dataclass
class Operation:
    """One operation of a network: layer is its name there. arrays and settings as above; ``sign`` has neither."""

    layer: str
    name: str
    arrays: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        """Return what it makes of x."""
        return OPERATIONS[self.name](x, self.arrays, self.settings)


def fixed_point_steps(values: Tensor, fraction: int) -> Tensor:
    """Return floats as whole multiples of 2^-fraction, -128 to 127, in the same type; ties go to even."""
    return (values * 2.0**fraction).round().clamp(-128, 127)


def _fixed_point(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    return fixed_point_steps(x, settings["fraction"]) * 2.0 ** -settings["fraction"]


def _sign(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def _linear(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    return functional.linear(x, arrays["weight"], arrays.get("bias"))


def _conv2d(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    vertical, horizontal = settings["padding"]
    if settings["border"] and (vertical or horizontal):
        around = (horizontal, horizontal, vertical, vertical)
        x = functional.pad(x, around, value=float(settings["border"]))
        vertical = horizontal = 0
    geometry = settings["stride"], (vertical, horizontal), settings["dilation"], settings["groups"]
    return functional.conv2d(x, arrays["weight"], arrays.get("bias"), *geometry)


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, 1, 1) if x.dim() == 4 else values


def _multiply(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    return x * _by_channel(arrays["factor"], x)


def _add(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    return x + _by_channel(arrays["bias"], x)


def _batch_norm(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    weight, bias = arrays.get("weight"), arrays.get("bias")
    return functional.batch_norm(x, arrays["mean"], arrays["variance"], weight, bias, False, 0.0, settings["eps"])


def _relu(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    return functional.relu(x)


def _hardtanh(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    return functional.hardtanh(x, settings["least"], settings["most"])


def _max_pool2d(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    window = settings["kernel"], settings["stride"], settings["padding"], settings["dilation"], settings["ceil"]
    return functional.max_pool2d(x, *window)


def _adaptive_avg_pool2d(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    return functional.adaptive_avg_pool2d(x, settings["size"])


def _mean(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    return x.mean((2, 3))


def _flatten(x: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    return x.flatten(1)


OPERATIONS: Mapping[str, Callable[[Tensor, Arrays, Settings], Tensor]] = {
    "fixed_point": _fixed_point, "sign": _sign, "linear": _linear, "conv2d": _conv2d, "multiply": _multiply,
    "add": _add, "batch_norm": _batch_norm, "relu": _relu, "hardtanh": _hardtanh, "max_pool2d": _max_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d, "mean": _mean, "flatten": _flatten,
}  # fmt: skip
