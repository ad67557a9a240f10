"""All kernels of all installed choices of ``kernels``, what to try them on, and who must take which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import ConvSpec, Kernels
from engine.interfaces import DIRECTIONS, ConvKernel
from engine.ops import NATIVE, register
from engine.registry import Registry
from engine.testing.kernel import supplied

COMPLETE = True
"""Whether every built-in algorithm is finished: then a direction of EXPECTED that is refused fails the tests."""


def choices() -> dict[str, type[Kernels]]:
    """Return the installed choices of ``kernels``, as the engine hands them to a chooser."""
    registry = Registry.load()
    return {name: registry.entry("kernels", name).options for name in registry.names("kernels")}  # type: ignore[misc]


KERNELS: dict[str, ConvKernel] = {
    kernel.name: kernel for options in choices().values() for kernel in supplied(options())
}
for _kernel in KERNELS.values():
    register(_kernel)

SPECS = {
    "plain": ConvSpec(2, 4, 6, 5, 3, (3, 3), padding=(1, 1)),
    "grouped": ConvSpec(2, 4, 6, 5, 6, (3, 3), padding=(1, 1), groups=2),
    "line": ConvSpec(2, 3, 5, 6, 4, (1, 3), padding=(0, 1)),
    "point": ConvSpec(2, 5, 4, 3, 6, (1, 1)),
    "strided": ConvSpec(2, 3, 7, 6, 4, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "depthwise": ConvSpec(2, 4, 6, 5, 4, (3, 3), padding=(1, 1), groups=4),
}
EVERY = set(SPECS)
EXPECTED = {
    "native": EVERY,
    "naive": EVERY,
    "im2col": EVERY,
    "implicit": EVERY,
    "fft": EVERY,
    "winograd2": {"plain", "grouped", "line"},
    "winograd4": {"plain", "grouped", "line"},
    "winograd6": {"plain", "grouped", "line"},
    "depthwise": {"depthwise"},
}
"""The specs that an algorithm takes in all three directions."""


def taken(kernel: ConvKernel, spec: ConvSpec) -> list[str]:
    """Return the directions that a kernel takes; skips the test where it refuses all of them."""
    refused = {d: reason for d in DIRECTIONS if (reason := kernel.refuses(spec, d))}
    if len(refused) == len(DIRECTIONS):
        pytest.skip(f"{kernel.name} refuses it: {refused['forward']}")
    return [d for d in DIRECTIONS if d not in refused]


def names(kernel: ConvKernel, spec: ConvSpec) -> str:
    """Return the kernel's name for the directions that it takes, torch's own for the others, as the ops want them."""
    directions = taken(kernel, spec)
    return "/".join(kernel.name if d in directions else NATIVE.name for d in DIRECTIONS)


def geometry(spec: ConvSpec) -> tuple[Any, ...]:
    """Return the arguments of an op that say how the filter moves."""
    return (spec.stride, spec.padding, spec.dilation, spec.groups)


def tensors(spec: ConvSpec, dtype: torch.dtype = torch.float64, requires_grad: bool = True) -> list[Tensor]:
    """Return images, weight, bias and the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes: Sequence[Sequence[int]] = (spec.input_shape, spec.weight_shape, (spec.filters,), spec.output_shape)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_(requires_grad) for s in shapes]


def body() -> nn.Module:
    """Return layers called conv1, layer1.0, layer1.1, layer2.0."""
    model = nn.Sequential()
    model.conv1 = nn.Conv2d(3, 4, 3)
    model.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3))
    return model
