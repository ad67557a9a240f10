"""The perceptron's layers, their initial weights and what it refuses; LeNet in the sizes of Gupta et al. 2015."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import UsageError
from engine.plugins.models import MLP, LeNet


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.children()]


def test_layers_stand_in_the_papers_order_and_the_last_is_normalised_too():
    model = MLP(hidden=[30, 20], batch_norm=True, dropout=0.5, input_dropout=0.2).build((1, 4, 5), 10)
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert kinds(model) == [nn.Flatten, nn.Dropout, *hidden, *hidden, nn.Linear, nn.BatchNorm1d]
    assert [tuple(p.shape) for name, p in model.named_parameters() if "fc" in name] == [(30, 20), (20, 30), (10, 20)]
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.2, 0.5, 0.5]


def test_without_batch_norm_layers_have_biases_of_zero():
    model = MLP().build((1, 28, 28), 10)
    assert kinds(model) == [nn.Flatten, *[nn.Linear, nn.ReLU] * 2, nn.Linear]
    assert sum(p.numel() for p in model.parameters()) == 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_the_scores_are_those_of_the_written_out_network():
    torch.manual_seed(0)
    model = MLP(hidden=[7]).build((2, 3, 3), 4)
    nn.init.normal_(model.fc1.bias)
    images = torch.randn(5, 2, 3, 3)
    hidden = (images.double().reshape(5, 18) @ model.fc1.weight.double().T + model.fc1.bias.double()).clamp(min=0)
    assert torch.allclose(model(images).double(), hidden @ model.fc2.weight.double().T, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "deviations"),
    [
        (MLP(hidden=[400, 300]), [(2 / 784) ** 0.5, (2 / 400) ** 0.5, (1 / 300) ** 0.5]),
        (MLP(hidden=[400, 300], init="normal"), [0.01, 0.01, 0.01]),
        (MLP(hidden=[400, 300], init="normal", init_std=0.1), [0.1, 0.1, 0.1]),
    ],
)
def test_initial_weights_have_the_spread_that_is_asked_for(options, deviations):
    torch.manual_seed(0)
    model = options.build((1, 28, 28), 10)
    weights = [p for p in model.parameters() if p.ndim > 1]
    for weight, deviation in zip(weights, deviations, strict=True):
        five = 5 * deviation / (2 * weight.numel()) ** 0.5  # standard errors of a deviation
        assert weight.std().item() == pytest.approx(deviation, abs=five)
        assert abs(weight.mean().item()) < 5 * deviation / weight.numel() ** 0.5


def test_no_hidden_layer_is_a_linear_classifier_and_one_without_units_is_refused():
    assert kinds(MLP(hidden=[]).build((1, 8, 8), 10)) == [nn.Flatten, nn.Linear]
    with pytest.raises(UsageError, match=r"model\.hidden=\[5, 0\]"):
        MLP(hidden=[5, 0]).build((1, 8, 8), 10)


def test_guptas_network_is_lenet_with_other_sizes():
    model = LeNet(filters=[8, 16], hidden=128, relu="all").build((1, 28, 28), 10)
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim > 1]
    assert shapes == [(8, 1, 5, 5), (16, 8, 5, 5), (128, 16 * 4 * 4), (10, 128)]
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 3
    plain = LeNet(filters=[8, 16], hidden=128).build((1, 28, 28), 10)
    assert list(plain.state_dict()) == list(model.state_dict())
    plain.load_state_dict(model.state_dict())
    images = torch.randn(3, 1, 28, 28)
    first = nn.functional.max_pool2d(model.conv1(images).clamp(min=0), 2)
    second = nn.functional.max_pool2d(model.conv2(first).clamp(min=0), 2).flatten(1)
    assert torch.allclose(model(images), model.fc2(model.fc1(second).clamp(min=0)))
    assert not torch.allclose(model(images), plain(images))  # Caffe's convolutions have no ReLU


@pytest.mark.parametrize("filters", [[8], [8, 16, 32], [0, 16]])
def test_lenet_takes_two_numbers_of_filters(filters):
    with pytest.raises(UsageError, match=r"model\.filters=.*two numbers"):
        LeNet(filters=filters).build((1, 28, 28), 10)
