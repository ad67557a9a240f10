"""What a plan of ``kernels=auto`` says of layers and of how they are computed, and how that differs from today's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.convolutions import Layer
from engine.ops import instruction_set

from .memory import tf32


def numerics(layers: Sequence[Layer]) -> dict[str, str]:
    """Return what the last bits depend on beside the kernels, as a plan holds it; "float32" for layers on a GPU."""
    on_gpu = any(layer.spec is not None and layer.spec.device == "cuda" for layer in layers)
    return {"instruction_set": instruction_set()} | (
        {"float32": "TF32" if tf32() else "full float32"} if on_gpu else {}
    )


def other_numbers(plan: dict[str, Any], layer: Layer, compiled: bool, native: bool) -> str:
    """Return how a layer's numbers differ although its kernels are those planned; "" if they do not.

    compiled: whether one of them is the engine's own, of an instruction set on a CPU; native: whether one is torch's
    own, which on a GPU computes float32 as torch is told to.
    """
    assert layer.spec is not None
    now = numerics([layer])
    key = "float32" if "float32" in now else "instruction_set"
    concerned = compiled if key == "instruction_set" else native and layer.spec.dtype == torch.float32
    if not concerned or plan.get(key) == now[key]:
        return ""
    return f", but for {plan.get(key)}: here {now[key]}, numbers will differ"


def layer_facts(layer: Layer) -> list[Any]:
    """Return what a plan's entry holds of a layer's shape, as JSON values: sizes, type, and the device but for CPUs."""
    assert layer.spec is not None
    where = [] if layer.spec.device == "cpu" else [layer.spec.device]
    return [*layer.spec.sizes, str(layer.spec.dtype), *where]


def difference(before: Sequence[Any], now: Sequence[Any]) -> str:
    """Return in what the facts of a layer differ, as a phrase."""
    (*sizes, dtype, device), (*others, other, here) = _whole(before), _whole(now)
    if device != here:
        return f"{device} before, now {here}"
    if dtype != other:
        return f"{dtype} before, now {other}"
    if sizes[:4] != others[:4]:
        images, shape = ("x".join(map(str, some[:4])) for some in (sizes, others))
        return f"images of {images} before, now {shape}"
    return "another filter, stride, padding, dilation or groups before"


def _whole(facts: Sequence[Any]) -> list[Any]:
    """Return a layer's facts with its device, which an entry leaves out for a CPU."""
    return [*facts] if isinstance(facts[-2], str) else [*facts, "cpu"]
