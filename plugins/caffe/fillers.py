"""Caffe's fillers: how a layer's weights are drawn before it is trained (include/caffe/filler.hpp)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt

import torch
from torch import Tensor

from engine.errors import did_you_mean

from .prototxt import Mistake
from .schema import EMPTY, LARGEST, Message

Shape = tuple[int, ...]


def fill(tensor: Tensor, filler: Message | None, default: str = "constant", value: float = 0.0) -> None:
    """Draw a parameter's first values, in place. Raises Mistake for a filler that Caffe does not have.

    ``default`` (with ``value`` where it is constant) is the filler of a layer that names none.
    """
    message = filler or Message("filler", EMPTY)
    name = message.get("type") if filler else default
    if name not in FILLERS:
        raise Mistake(message.line, f"no filler is called '{name[:40]}'{did_you_mean(name, FILLERS)}")
    with torch.no_grad():
        if filler is None and default == "constant":
            tensor.fill_(value)
        else:
            FILLERS[name](tensor, message)


def _constant(tensor: Tensor, filler: Message) -> None:
    tensor.fill_(filler.get("value"))


def _uniform(tensor: Tensor, filler: Message) -> None:
    low, high = filler.get("min"), filler.get("max")
    if low > high:
        raise Mistake(filler.line, f"min {low:g} of a filler is above its max {high:g}")
    if high - low > LARGEST:
        raise Mistake(filler.line, f"a filler's min {low:g} and max {high:g} are further apart than float32 reaches")
    tensor.uniform_(low, high)


def _gaussian(tensor: Tensor, filler: Message) -> None:
    tensor.normal_(filler.get("mean"), _deviation(filler))
    sparse = filler.get("sparse")
    if sparse >= 0:  # so many weights of an output are not 0, on average
        tensor.mul_(torch.bernoulli(torch.full_like(tensor, min(1.0, sparse / len(tensor)))))


def _deviation(filler: Message) -> float:
    deviation: float = filler.get("std")
    if deviation < 0:
        raise Mistake(filler.line, f"std {deviation:g} of a filler is below 0")
    return deviation


def _fan(tensor: Tensor, filler: Message) -> float:
    inputs = tensor.numel() / len(tensor)
    outputs = tensor.numel() / tensor.shape[1] if tensor.ndim > 1 else tensor.numel()
    fans = {"FAN_IN": inputs, "FAN_OUT": outputs, "AVERAGE": (inputs + outputs) / 2}
    return fans[filler.get("variance_norm")]


def _xavier(tensor: Tensor, filler: Message) -> None:
    bound = sqrt(3 / _fan(tensor, filler))
    tensor.uniform_(-bound, bound)


def _msra(tensor: Tensor, filler: Message) -> None:
    tensor.normal_(0.0, sqrt(2 / _fan(tensor, filler)))


def _positive_unitball(tensor: Tensor, filler: Message) -> None:
    tensor.uniform_()
    tensor.div_(tensor.flatten(1).sum(1).view(-1, *(1,) * (tensor.ndim - 1)) if tensor.ndim > 1 else tensor.sum())


def _bilinear(tensor: Tensor, filler: Message) -> None:
    """Set every kernel to the one that enlarges bilinearly."""
    if tensor.ndim != 4 or tensor.shape[2] != tensor.shape[3]:
        raise Mistake(filler.line, "the bilinear filler is for square kernels")
    size = tensor.shape[3]
    factor = (size + 1) // 2
    centre = (size - 1) / (2 * factor)
    line = 1 - (torch.arange(size, dtype=torch.float32) / factor - centre).abs()
    tensor.copy_((line[:, None] * line[None, :]).expand_as(tensor))


FILLERS: Mapping[str, Callable[[Tensor, Message], None]] = {
    "constant": _constant, "uniform": _uniform, "gaussian": _gaussian, "xavier": _xavier, "msra": _msra,
    "positive_unitball": _positive_unitball, "bilinear": _bilinear,
}  # fmt: skip
