"""Layers of one bit as they are trained: BinaryLinear, BinaryConv2d, Sign, FixedPointInput.

What trains or exports such networks asks a module for attributes, not for these classes:

``binary_weight``    True: the layer computes with sign(weight), +1 for 0 too; a convolution has ``padding_value``,
                     what stands beyond the border: -1, +1, or 0 for real inputs. ``scale()`` gives a factor for each
                     output, or None; ``input_fraction`` is as ``fixed_point`` below, where the layer itself rounds
                     its inputs, or None.
``sign_activation``  True: the module is sign(x), +1 for 0 too.
``fixed_point``      the number of bits behind the point of inputs that the module rounds to 8 bits.

Sums of +-1 are whole numbers, exact in float32 up to 2^24 whatever their order, so a layer multiplies with its scale
and adds its bias after the sum and not within: a packed network can then repeat every bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.binary.operations import fixed_point_steps


class _StraightThrough(torch.autograd.Function):
    """sign(x), +1 for 0; backwards the gradient where |x| <= 1, else 0 (Courbariaux et al. 2016, equation 4)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """Return the signs in x's type."""
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep x."""
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the masked gradient."""
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


def sign(x: Tensor) -> Tensor:
    """Return +1 where x >= 0, else -1, with a straight-through gradient: that of x where |x| <= 1, else 0."""
    return _StraightThrough.apply(x)


class Sign(nn.Module):
    """The activation sign(x), +1 for 0, with a straight-through gradient: see ``sign``."""

    sign_activation = True

    def forward(self, input: Tensor) -> Tensor:
        """Return the signs."""
        return sign(input)


class BinaryLinear(nn.Linear):
    """A linear layer that computes with the signs of its weights: input sign(W)^T, times ``scale()``, + bias.

    scaled: the scale is the mean of |W| over each output's weights (Rastegari et al. 2016, "XNOR-Net", equation 6),
    differentiated as well; else there is none. input_fraction: inputs are rounded as by FixedPointInput. Parameters
    have the names of ``nn.Linear``'s.
    """

    binary_weight = True
    scaled = False
    input_fraction: int | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scaled: bool = False,
        input_fraction: int | None = None,
        **more: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, **more)
        self.scaled, self.input_fraction = scaled, _fraction(input_fraction)

    @classmethod
    def of(cls, layer: nn.Linear, *, scaled: bool = False, input_fraction: int | None = None) -> BinaryLinear:
        """Return a layer of one bit that shares a plain one's parameters and hooks; it takes its place."""
        made = cls.__new__(cls)
        vars(made).update(vars(layer))
        made.scaled, made.input_fraction = scaled, _fraction(input_fraction)
        return made

    def scale(self) -> Tensor | None:
        """Return the factor of each output, [out_features], or None."""
        return self.weight.abs().mean(1) if self.scaled else None

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs."""
        sums = functional.linear(_rounded(input, self.input_fraction), sign(self.weight))
        return _scaled(sums, self.scale(), self.bias)

    def extra_repr(self) -> str:
        """Return the layer's settings."""
        return f"{super().extra_repr()}, scaled={self.scaled}, input_fraction={self.input_fraction}"


class BinaryConv2d(nn.Conv2d):
    """A convolution that computes with the signs of its weights, times ``scale()``, + bias; see BinaryLinear.

    padding_value: what stands beyond the border: -1 (default) or +1, as there is no 0 among signs, or 0 for a first
    layer, whose inputs are real. ``kernels=`` leaves it to torch. input_fraction: as there. Parameters have the names
    of ``nn.Conv2d``'s.
    Raises ValueError for another value, or a padding that is not given as numbers.
    """

    binary_weight = True
    padding_value = -1
    scaled = False
    input_fraction: int | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        padding_value: int = -1,
        scaled: bool = False,
        input_fraction: int | None = None,
        **more: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **more)
        self._set(padding_value, scaled, input_fraction)

    @classmethod
    def of(
        cls, layer: nn.Conv2d, *, padding_value: int = -1, scaled: bool = False, input_fraction: int | None = None
    ) -> BinaryConv2d:
        """Return a convolution of one bit that shares a plain one's parameters and hooks; it takes its place."""
        made = cls.__new__(cls)
        vars(made).update(vars(layer))
        made._set(padding_value, scaled, input_fraction)
        return made

    def _set(self, padding_value: int, scaled: bool, input_fraction: int | None) -> None:
        if padding_value not in (-1, 0, 1):
            raise ValueError(f"padding_value is {padding_value}, but must be -1, 0 or 1")
        if isinstance(self.padding, str) or self.padding_mode != "zeros":
            raise ValueError("a binary convolution takes its padding as numbers, and padding_mode='zeros' alone")
        self.padding_value, self.scaled, self.input_fraction = padding_value, scaled, _fraction(input_fraction)

    def scale(self) -> Tensor | None:
        """Return the factor of each filter, [out_channels], or None."""
        return self.weight.abs().mean((1, 2, 3)) if self.scaled else None

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution."""
        input = _rounded(input, self.input_fraction)
        vertical, horizontal = (int(p) for p in self.padding)
        if self.padding_value and (vertical or horizontal):
            border = (horizontal, horizontal, vertical, vertical)
            input = functional.pad(input, border, value=float(self.padding_value))
            vertical = horizontal = 0
        sums = functional.conv2d(
            input, sign(self.weight), None, self.stride, (vertical, horizontal), self.dilation, self.groups
        )
        scale, bias = self.scale(), self.bias
        shape = (-1, 1, 1)
        return _scaled(sums, None if scale is None else scale.view(shape), None if bias is None else bias.view(shape))

    def extra_repr(self) -> str:
        """Return the layer's settings."""
        settings = ("padding_value", "scaled", "input_fraction")
        return ", ".join([super().extra_repr(), *(f"{name}={getattr(self, name)}" for name in settings)])


def _scaled(sums: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    if scale is not None:
        sums = sums * scale
    return sums if bias is None else sums + bias


def _fraction(fraction: int | None) -> int | None:
    if fraction is not None and not -16 <= fraction <= 16:
        raise ValueError(f"the bits behind the point are {fraction}, but must be -16 to 16")
    return fraction


def _rounded(input: Tensor, fraction: int | None) -> Tensor:
    """Return inputs as 8 bits, ``fraction`` of them behind the point, or as they are; the gradient passes unchanged."""
    if fraction is None:
        return input
    rounded = fixed_point_steps(input.detach(), fraction) * 2.0**-fraction
    return rounded + (input - input.detach()) if input.requires_grad else rounded


class FixedPointInput(nn.Module):
    """Rounds inputs to 8 bits, ``fixed_point`` of them behind the point: multiples of 2^-fixed_point, saturating.

    In front of a first layer of binary weights it makes that layer's sums whole numbers (Courbariaux et al. 2016,
    section 2.5, take 8-bit inputs too), so that a packed network computes it in integers. 5 suits normalised images:
    -4 to 3.97. Ties go to even. The gradient passes unchanged. Raises ValueError for what is not -16 to 16.
    """

    def __init__(self, fixed_point: int = 5) -> None:
        super().__init__()
        if not -16 <= fixed_point <= 16:
            raise ValueError(f"fixed_point is {fixed_point}, but must be -16 to 16")
        self.fixed_point = fixed_point

    def forward(self, input: Tensor) -> Tensor:
        """Return the rounded inputs."""
        return _rounded(input, self.fixed_point)

    def extra_repr(self) -> str:
        """Return the layer's settings."""
        return f"fixed_point={self.fixed_point}"
