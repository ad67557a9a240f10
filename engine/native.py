"""torch's own convolutions, in the form of a kernel: what computes whatever no other kernel does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels import ConvKernel, ConvSpec


class NativeKernel(ConvKernel):
    """Computes every convolution that torch can, on any device and in any of its types."""

    name = "native"

    def forward(self, images: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
        """Return the convolution, [spec.output_shape]."""
        return torch.ops.aten.convolution(
            images, weight, bias, spec.stride, spec.padding, spec.dilation, False, (0, 0), spec.groups
        )

    def backward_input(self, gradient: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the images, [spec.input_shape]."""
        images = _unfilled(spec.input_shape, gradient, spec)
        return _backward(gradient, images, weight, spec, (True, False, False))[0]

    def backward_weight(self, gradient: Tensor, images: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the weight, [spec.weight_shape]."""
        weight = _unfilled(spec.weight_shape, images, spec)
        return _backward(gradient, images, weight, spec, (False, True, False))[1]


def _unfilled(shape: tuple[int, ...], like: Tensor, spec: ConvSpec) -> Tensor:
    """Return what only lends its shape and layout to a call."""
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _backward(
    gradient: Tensor, images: Tensor, weight: Tensor, spec: ConvSpec, wanted: tuple[bool, bool, bool]
) -> Sequence[Tensor]:
    return torch.ops.aten.convolution_backward(
        gradient, images, weight, None, spec.stride, spec.padding, spec.dilation, False, (0, 0), spec.groups, wanted
    )
