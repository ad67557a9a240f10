"""The networks against their papers' sizes and published weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine import UsageError
from engine.plugins.models import LeNet, ResNet20, SmallCNN


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def layer_sizes(depth: int) -> int:
    """Count the parameters of the CIFAR ResNet as table 6 of He et al. 2015 lays it out, batch norms included."""
    n, total, channels = (depth - 2) // 6, 3 * 16 * 9 + 2 * 16, 16
    for filters in (16, 32, 64):
        for _ in range(n):
            total += channels * filters * 9 + filters * filters * 9 + 4 * filters
            channels = filters
    return total + 64 * 10 + 10


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)  # the paper's table 6
def test_resnet_has_the_papers_number_of_parameters(depth: int, millions: float) -> None:
    model = ResNet20(depth=depth).build((3, 32, 32), 10)
    assert round(size(model) / 1e6, 2 if millions < 1 else 1) == millions
    assert size(model) == layer_sizes(depth)
    convolutions = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    assert convolutions == depth


def test_resnet20_has_269722_parameters() -> None:
    assert size(ResNet20().build((3, 32, 32), 10)) == 269_722


def test_resnet_refuses_a_depth_that_is_not_6n_plus_2() -> None:
    with pytest.raises(UsageError, match=r"model\.depth=21.*6n \+ 2"):
        ResNet20(depth=21).build((3, 32, 32), 10)


def test_option_a_shortcut_subsamples_and_pads_with_zero_channels() -> None:
    model = ResNet20().build((3, 32, 32), 10).eval()
    block = model.layer2[0]
    nn.init.zeros_(block.bn2.weight)  # only the shortcut is left
    x = torch.rand(2, 16, 7, 5)
    expected = torch.zeros(2, 32, 4, 3)
    for channel in range(16):
        for row in range(4):
            for column in range(3):
                expected[:, channel + 8, row, column] = x[:, channel, 2 * row, 2 * column]
    assert torch.equal(block(x), expected)


def test_published_resnet20_weights_load_strictly_and_classify(real_data: Callable[[str], Path]) -> None:
    weights = real_data("weights/pytorch_resnet20_cifar10/resnet20-12fca82f.th")
    records = np.fromfile(real_data("cifar10/test_batch.bin"), np.uint8, count=3073 * 400).reshape(-1, 3073)
    state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    state = {name.removeprefix("module."): value for name, value in state.items()}
    model = ResNet20().build((3, 32, 32), 10).eval()
    model.load_state_dict(state, strict=True)
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        right = model((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)).argmax(1).numpy() == records[:, 0]
    assert right.mean() == pytest.approx(0.9173, abs=0.042)  # published, on all 10,000; three standard errors of 400


def test_lenet_has_caffes_number_of_parameters_and_layer_sizes() -> None:
    model = LeNet().build((1, 28, 28), 10)
    assert size(model) == 431_080
    assert [tuple(p.shape) for p in model.parameters() if p.dim() > 1] == [
        (20, 1, 5, 5),
        (50, 20, 5, 5),
        (500, 800),
        (10, 500),
    ]


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        (LeNet(), (1, 28, 28)),
        (LeNet(), (3, 32, 32)),
        (LeNet(), (1, 13, 13)),
        (LeNet(), (2, 17, 30)),
        (SmallCNN(width=4), (1, 8, 8)),
        (SmallCNN(width=4, dropout=0.5), (3, 9, 31)),
        (SmallCNN(width=4), (5, 64, 64)),
        (ResNet20(depth=8), (1, 28, 28)),
        (ResNet20(depth=8), (3, 9, 15)),
    ],
)
def test_every_image_size_promised_gives_scores_and_gradients(
    options: LeNet | SmallCNN | ResNet20, inputs: tuple[int, int, int]
) -> None:
    model = options.build(inputs, 7)
    scores = model(torch.randn(2, *inputs))
    assert scores.shape == (2, 7)
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("options", "inputs"), [(LeNet(), (1, 12, 28)), (SmallCNN(), (1, 8, 7))])
def test_images_that_are_too_small_are_refused(options: LeNet | SmallCNN, inputs: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=rf"at least .* not {inputs[1]}x{inputs[2]}"):
        options.build(inputs, 10)


def test_initial_weights_have_the_papers_spread() -> None:
    torch.manual_seed(0)
    resnet = ResNet20().build((3, 32, 32), 10)
    for name, weight in resnet.named_parameters():
        if weight.dim() == 4:  # fan-in
            assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.1), name
    cnn = SmallCNN().build((3, 32, 32), 10)
    for name, weight in cnn.named_parameters():
        if weight.dim() == 4:  # fan-out
            assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.1), name
    lenet = LeNet().build((1, 28, 28), 10)
    for name, weight in lenet.named_parameters():
        if weight.dim() > 1:  # uniform: its standard deviation is bound / sqrt(3) = 1 / sqrt(fan-in)
            assert weight.std().item() == pytest.approx(weight[0].numel() ** -0.5, rel=0.1), name
            assert weight.abs().max().item() <= (3 / weight[0].numel()) ** 0.5, name
