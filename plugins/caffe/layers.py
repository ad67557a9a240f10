"""Layers of Caffe's that torch has no module for; each computes what Caffe's documentation of it says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Concat(nn.Module):
    """Several blobs as one, along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *blobs: Tensor) -> Tensor:
        """Return them together."""
        return torch.cat(blobs, self.axis)


class Slice(nn.Module):
    """One blob as several, of ``sizes`` along an axis."""

    def __init__(self, axis: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.axis, self.sizes = axis, tuple(sizes)

    def forward(self, blob: Tensor) -> tuple[Tensor, ...]:
        """Return the parts."""
        starts = [sum(self.sizes[:place]) for place in range(len(self.sizes))]
        return tuple(blob.narrow(self.axis, start, size) for start, size in zip(starts, self.sizes, strict=True))


class Eltwise(nn.Module):
    """Blobs of one shape summed, each times its coefficient, multiplied, or the largest of them, place by place."""

    def __init__(self, operation: str, coefficients: Sequence[float]) -> None:
        super().__init__()
        self.operation, self.coefficients = operation, tuple(coefficients)

    def forward(self, *blobs: Tensor) -> Tensor:
        """Return what the operation makes of them."""
        if self.operation == "SUM":
            blobs = tuple(b if c == 1 else b * c for b, c in zip(blobs, self.coefficients, strict=True))
        result = blobs[0]
        for blob in blobs[1:]:
            if self.operation == "SUM":
                result = result + blob
            else:
                result = result * blob if self.operation == "PROD" else torch.maximum(result, blob)
        return result

    def extra_repr(self) -> str:
        """Return the layer's settings."""
        return f"{self.operation}, {list(self.coefficients)}"


class Scale(nn.Module):
    """x * weight + bias, of each channel; the bias may be absent."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled blob."""
        shape = (1, -1, *(1,) * (x.ndim - 2))
        x = x * self.weight.view(shape)
        return x if self.bias is None else x + self.bias.view(shape)


class Bias(nn.Module):
    """x + bias, of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return x + self.bias.view(1, -1, *(1,) * (x.ndim - 2))


class ScaleBy(nn.Module):
    """The product of a blob and one that has its first axes only, as excitations of channels."""

    def __init__(self, missing: int) -> None:
        super().__init__()
        self.missing = missing

    def forward(self, x: Tensor, factors: Tensor) -> Tensor:
        """Return the product."""
        return x * factors[(..., *(None,) * self.missing)]


class Power(nn.Module):
    """(shift + scale x)^power."""

    def __init__(self, power: float, scale: float, shift: float) -> None:
        super().__init__()
        self.power, self.scale, self.shift = power, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        """Return the powers."""
        x = x * self.scale + self.shift
        return x if self.power == 1 else x.pow(self.power)

    def extra_repr(self) -> str:
        """Return the layer's settings."""
        return f"power={self.power:g}, scale={self.scale:g}, shift={self.shift:g}"


class AbsVal(nn.Module):
    """|x|."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the absolute values."""
        return x.abs()


class FixedStatistics(nn.Module):
    """BatchNorm that normalises by its running statistics in training too: Caffe's use_global_stats."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))  # as BatchNorm has, that weights fit both

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised blob."""
        return functional.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)


class Reshape(nn.Module):
    """Every image's numbers in another shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the blob reshaped."""
        return x.reshape(-1, *self.shape)


class Permute(nn.Module):
    """The axes of a blob in another order; the first is that of the images."""

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = tuple(order)

    def forward(self, x: Tensor) -> Tensor:
        """Return the blob, its axes in order."""
        return x.permute(self.order)


class Crop(nn.Module):
    """A part of a blob, (start, size) of each axis behind the first; a second blob only said how large."""

    def __init__(self, parts: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.parts = tuple(parts)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """Return the part."""
        for axis, (start, size) in enumerate(self.parts, 1):
            x = x.narrow(axis, start, size)
        return x
