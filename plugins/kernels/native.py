"""torch's own convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.interfaces import ConvKernel, ConvSpec, KernelChooser, KernelRow


class NativeKernel(ConvKernel):
    """Computes every convolution that torch can, on any device and in any of its types."""

    name = "native"

    def forward(self, images: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the convolution, [spec.output_shape]."""
        return torch.ops.aten.convolution(
            images, weight, None, spec.stride, spec.padding, spec.dilation, False, (0, 0), spec.groups
        )

    def backward_input(self, gradient: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the images, [spec.input_shape]."""
        # Only the shape and layout of the images matter here.
        layout = torch.channels_last if spec.channels_last else torch.contiguous_format
        images = gradient.new_empty(spec.input_shape).contiguous(memory_format=layout)
        return _backward(gradient, images, weight, spec, (True, False, False))[0]

    def backward_weight(self, gradient: Tensor, images: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the weight, [spec.weight_shape]."""
        return _backward(gradient, images, images.new_empty(spec.weight_shape), spec, (False, True, False))[1]


def _backward(
    gradient: Tensor, images: Tensor, weight: Tensor, spec: ConvSpec, wanted: tuple[bool, bool, bool]
) -> Sequence[Tensor]:
    return torch.ops.aten.convolution_backward(
        gradient, images, weight, None, spec.stride, spec.padding, spec.dilation, False, (0, 0), spec.groups, wanted
    )


class NativeChooser(KernelChooser):
    """Leaves every convolution to torch."""

    def apply(self, model: nn.Module, inputs: tuple[int, int, int, int]) -> Sequence[KernelRow]:
        """Return a row for each convolution; the model is unchanged."""
        return [
            KernelRow(layer, "native", "torch's own")
            for layer, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
        ]
