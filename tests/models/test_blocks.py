"""What the lecture says that stacks of convolutions cost, and what the blocks compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from engine.plugins.models.blocks import Asymmetric, Block, Bottleneck, DepthwiseSeparable, Residual, Stack

C = 16


def filters_of(block: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize(
    ("block", "weights"),
    [
        (Stack(C, C, 1, (7, 7)), 49 * C**2),
        (Stack(C, C, 3), 27 * C**2),
        (Stack(C, C, 1), 9 * C**2),
        (Asymmetric(C, C), 6 * C**2),
        (Bottleneck(C, C), 3.25 * C**2),
        (Bottleneck(C, C, asymmetric=True), 2.5 * C**2),
        (DepthwiseSeparable(C, C), C**2 + 9 * C),
    ],
)
def test_blocks_have_the_lectures_weights(block, weights):
    assert filters_of(block) == weights
    assert block(torch.randn(2, C, 9, 6)).shape == (2, C, 9, 6)


def seen(block: nn.Module) -> tuple[int, int]:
    """Return height and width of the pixels on which the middle of 21x21 depends."""
    for name, parameter in block.named_parameters():
        nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)  # nothing cancels
    x = torch.zeros(1, C, 21, 21, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        nn.Sequential(*(m for m in block if not isinstance(m, nn.ReLU)))(x)[0, 0, 10, 10], x
    )
    rows, columns = gradient[0].sum(0).nonzero().T
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


def test_three_3x3_see_what_a_7x7_sees():
    assert seen(Stack(C, C, 3)) == seen(Stack(C, C, 1, (7, 7))) == (7, 7)
    assert seen(Stack(C, C, 2)) == (5, 5)
    for block in (Asymmetric(C, C), Bottleneck(C, C), Bottleneck(C, C, asymmetric=True), DepthwiseSeparable(C, C)):
        assert seen(block) == (3, 3)
    assert seen(Asymmetric(C, C, 5)) == (5, 5)


MAKERS = [Stack, Asymmetric, Bottleneck, DepthwiseSeparable]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_convolution_has_its_relu_and_the_stride_is_once(maker, batch_norm):
    block = maker(6, 10, stride=2, batch_norm=batch_norm)
    convolutions = [m for m in block if isinstance(m, nn.Conv2d)]
    assert [m.bias is None for m in convolutions] == [batch_norm] * len(convolutions)
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] if batch_norm else [nn.Conv2d, nn.ReLU]
    assert [type(m) for m in block] == kinds * len(convolutions)
    assert block(torch.randn(2, 6, 9, 8)).shape == (2, 10, 5, 4)
    assert not any(isinstance(m, nn.ReLU) for m in list(maker(6, 10, relu=False))[-1:])
    assert all(m.bias is None for m in maker(6, 10, bias=False) if isinstance(m, nn.Conv2d))


def test_depthwise_is_each_channel_by_itself():
    block, x = DepthwiseSeparable(3, 5, bias=False), torch.randn(2, 3, 6, 6)
    depthwise, pointwise = block.conv1.weight, block.conv2.weight
    maps = [functional.conv2d(x[:, c : c + 1], depthwise[c : c + 1], padding=1).clamp(min=0) for c in range(3)]
    expected = torch.einsum("oc,nchw->nohw", pointwise[:, :, 0, 0], torch.cat(maps, 1)).clamp(min=0)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("filters", "stride"), [(6, 1), (8, 1), (6, 2)])
def test_a_residual_is_the_sum(filters, stride):
    body = Stack(6, filters, 2, stride=stride, relu=False)
    block, x = Residual(body, 6, filters, stride), torch.randn(2, 6, 7, 7)
    changes = (filters, stride) != (6, 1)
    assert isinstance(block.shortcut, Block) == changes
    shortcut = functional.conv2d(x, block.shortcut.conv1.weight, block.shortcut.conv1.bias, stride) if changes else x
    torch.testing.assert_close(block(x), (body(x) + shortcut).clamp(min=0))
