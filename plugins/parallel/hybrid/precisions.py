"""What split layers need to know of the numbers that a run computes in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from engine import UsageError
from engine.interfaces import Precision
from engine.quantization import Half, RoundedPrecision


def require_splittable(precision: Precision, layers: Mapping[str, nn.Linear]) -> None:
    """Raise UsageError for a policy whose draws, ranges or state belong to whole tensors.

    What rounds every number by itself, without chance, does the same to a part.
    """
    rounds = isinstance(precision, RoundedPrecision) and any(type(s.quantizer) is not Half for s in precision.sites)
    narrow = any(layer.weight.dtype not in (torch.float32, torch.float64) for layer in layers.values())
    if rounds or narrow:
        raise UsageError(
            f"parallel=hybrid: precision {type(precision).__name__} rounds whole layers or weights, of which a process "
            "has only parts: choose parallel=data, or a precision that does not"
        )


def require_unscaled(precision: Precision) -> None:
    """Raise UsageError for a policy that scales the loss, whose scale may change between two updates of a step."""
    if precision.scale() is not None:
        raise UsageError(
            f"parallel.updates=every: precision {type(precision).__name__} scales the loss, once a step: choose "
            "parallel.updates=once, or precision=float32 or bfloat16"
        )


def element_size(precision: Precision, layer: nn.Linear) -> int:
    """Return how many bytes an activation takes that a layer reads."""
    kind = layer.weight.device.type
    with precision.forward():
        return (torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else layer.weight.dtype).itemsize
