"""torch's own kernel against convolution written as nested loops; the same for the loops of ``naive``."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from installed import KERNELS
from torch import Tensor

from engine import ConvSpec

SPECS = [
    ConvSpec(2, 3, 6, 5, 4, (3, 3), padding=(1, 1), dtype=torch.float64),
    ConvSpec(1, 2, 7, 7, 3, (3, 2), stride=(2, 1), padding=(0, 1), dtype=torch.float64),
    ConvSpec(2, 4, 6, 6, 6, (2, 3), dilation=(2, 1), groups=2, dtype=torch.float64),
    ConvSpec(2, 4, 5, 5, 4, (3, 3), padding=(1, 1), groups=4, dtype=torch.float64, channels_last=True),
]


def by_hand(images: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
    out = torch.zeros(spec.output_shape, dtype=torch.float64)
    per_group, share = spec.filters // spec.groups, spec.channels // spec.groups
    for n, f, y, x in product(*(range(size) for size in spec.output_shape)):
        for c, i, j in product(range(share), *(range(size) for size in spec.kernel)):
            row = y * spec.stride[0] - spec.padding[0] + i * spec.dilation[0]
            column = x * spec.stride[1] - spec.padding[1] + j * spec.dilation[1]
            if 0 <= row < spec.height and 0 <= column < spec.width:
                out[n, f, y, x] += images[n, f // per_group * share + c, row, column] * weight[f, c, i, j]
    return out


@pytest.mark.parametrize("name", ["native", "naive"])
@pytest.mark.parametrize("spec", SPECS)
def test_all_three_directions(spec: ConvSpec, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(spec.input_shape, generator=generator, dtype=spec.dtype)
    weight = torch.randn(spec.weight_shape, generator=generator, dtype=spec.dtype)
    bias = torch.randn(spec.filters, generator=generator, dtype=spec.dtype)
    gradient = torch.randn(spec.output_shape, generator=generator, dtype=spec.dtype)
    if spec.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    kernel = KERNELS[name]
    expected = by_hand(images, weight, spec)
    torch.testing.assert_close(kernel.forward(images, weight, None, spec), expected)
    torch.testing.assert_close(kernel.forward(images, weight, bias, spec), expected + bias[:, None, None])
    # Convolution is linear in each argument: <conv(x, w), g> = <x, backward_input> = <w, backward_weight>, for
    # every x and w, defines both gradients.
    to_images = kernel.backward_input(gradient, weight, spec)
    to_weight = kernel.backward_weight(gradient, images, spec)
    assert to_images.shape == spec.input_shape
    assert to_weight.shape == spec.weight_shape
    for _ in range(2):
        x = torch.randn(spec.input_shape, generator=generator, dtype=spec.dtype)
        w = torch.randn(spec.weight_shape, generator=generator, dtype=spec.dtype)
        torch.testing.assert_close((to_images * x).sum(), (gradient * by_hand(x, weight, spec)).sum())
        torch.testing.assert_close((to_weight * w).sum(), (gradient * by_hand(images, w, spec)).sum())


def test_a_spec_knows_its_shapes() -> None:
    spec = ConvSpec.of((2, 6, 9, 8), (4, 3, 3, 2), (2, 1), (1, 0), (1, 3), groups=2)
    assert spec == ConvSpec(2, 6, 9, 8, 4, (3, 2), (2, 1), (1, 0), (1, 3), 2)
    assert spec.output_shape == (2, 4, 5, 5)  # (9 + 2 - 2 - 1) // 2 + 1 rows, (8 - 3 - 1) // 1 + 1 columns
    assert spec.weight_shape == (4, 3, 3, 2)
    # In the order of ConvShape in csrc/cpu/convolution.h.
    assert spec.sizes == (2, 6, 9, 8, 4, 3, 2, 2, 1, 1, 0, 1, 3, 2, 5, 5)
