"""The contracts of convolution kernels: what one convolution is, what computes it, and who chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ConvSpec:
    """One convolution, all that a kernel needs to know: sizes in pixels, dtype and memory layout."""

    batch: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    device: str = "cpu"

    @classmethod
    def of(
        cls,
        images: Sequence[int],
        weight: Sequence[int],
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        **arrays: Any,
    ) -> ConvSpec:
        """Return the spec of these shapes; ``arrays``: dtype, channels_last, device. ValueError if they do not fit."""
        for name, shape in (("images", images), ("weight", weight)):
            if len(shape) != 4:
                raise ValueError(f"convolution: {name} must have 4 dimensions, not {list(shape)}")
        (batch, channels, height, width), (filters, per_group, rows, columns) = images, weight
        for name, values, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
            if len(values) != 2 or min(values) < least:
                raise ValueError(f"convolution: {name} must be two numbers of at least {least}, not {list(values)}")
        if min(rows, columns, filters, per_group) < 1:
            raise ValueError(f"convolution: a weight of shape {list(weight)} has nothing to compute with")
        if groups < 1 or channels != per_group * groups or filters % groups:
            raise ValueError(
                f"convolution: images of {channels} channels, a weight of shape {list(weight)} and {groups} groups do "
                f"not fit: channels must be {per_group} x groups, and filters a multiple of groups"
            )
        spec = cls(
            batch, channels, height, width, filters, (rows, columns),
            (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]), groups, **arrays,
        )  # fmt: skip
        if min(spec.output_shape[2:]) < 1:
            raise ValueError(
                f"convolution: images of {height} x {width} are smaller than the filter of {rows} x {columns}"
                f" (padding {list(padding)}, dilation {list(dilation)})"
            )
        return spec

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """All of the geometry as numbers: what compiled kernels are given (``ConvShape`` in csrc)."""
        return (
            self.batch, self.channels, self.height, self.width, self.filters, *self.kernel, *self.stride,
            *self.padding, *self.dilation, self.groups, *self.output_shape[2:],
        )  # fmt: skip

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(batch, channels, height, width)."""
        return (self.batch, self.channels, self.height, self.width)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(filters, channels / groups, kernel height, kernel width)."""
        return (self.filters, self.channels // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(batch, filters, output height, output width)."""
        out = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(
                (self.height, self.width), self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        return (self.batch, self.filters, out[0], out[1])


DIRECTIONS = ("forward", "backward_input", "backward_weight")
"""What a convolution is computed for: its output, the gradient of its images, the gradient of its weight."""


class ConvKernel(Protocol):
    """An implementation of convolution (cross-correlation, as the field defines it) in its three directions.

    Arguments have any strides; results may have any, the engine lays them out as the model wants them.
    """

    name: str
    """Names this very algorithm, "winograd4" say: part of plans, tables and checkpoints."""
    error: float = 1e-6
    """Relative L2 error against float64 that float32 stays below, up to 512 channels; ``kernels=auto`` budgets it."""
    channels_last: bool = False
    """Whether arrays in NHWC order are its fast ones; the model's filters are then kept in that order too."""

    def refuses(self, spec: ConvSpec, direction: str) -> str | None:
        """Return why this kernel cannot compute a direction of ``spec``, as a phrase, or None if it can."""
        return None

    def prepare(self, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return what ``forward`` takes in the weight's place, valid inside one evaluation; default: itself."""
        return weight

    def forward(self, images: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
        """Return the convolution plus ``bias`` ([filters] or None), [spec.output_shape]."""
        ...

    def backward_input(self, gradient: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the images, [spec.input_shape]."""
        ...

    def backward_weight(self, gradient: Tensor, images: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the weight, [spec.weight_shape]."""
        ...

    def workspace(self, spec: ConvSpec, direction: str) -> int:
        """Return the bytes of temporary memory that a call needs."""
        return 0

    def waste(self, spec: ConvSpec) -> float:
        """Return the multiplications done for nothing, per useful one of the definition."""
        return 0.0


@dataclass(frozen=True)
class KernelRow:
    """One line of the table printed at the start: what computes a layer, and why.

    kernel: one name, or one for each direction it is used in, as in "winograd4 / native / winograd4".
    milliseconds: by direction, each kernel that was measured; empty where nothing was.
    """

    layer: str
    kernel: str
    reason: str
    milliseconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def same(value: Any) -> Any:
    """Return ``value``: what one process shares with itself."""
    return value


class KernelChooser(Protocol):
    """Puts kernels into a model's convolutions."""

    def apply(
        self,
        model: nn.Module,
        inputs: tuple[int, int, int, int],
        *,
        training: bool = True,
        share: Callable[[Any], Any] = same,
    ) -> Sequence[KernelRow]:
        """Plan and install kernels for images of shape ``inputs``; return a row for each layer worth telling.

        training: gradients will be computed. ``share(value)`` gives every process rank 0's value, so that all
        compute alike.
        """
        ...

    def prepared(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the weights do not change: kernels prepare them once, at their first use."""
        return nullcontext()

    def plan(self) -> dict[str, Any]:
        """Return what was decided, as JSON values, for checkpoints. Default: nothing."""
        return {}

    def load(self, plan: dict[str, Any]) -> None:
        """Take up what ``plan`` returned, before ``apply``: a resumed run then computes the same numbers."""
        return None
