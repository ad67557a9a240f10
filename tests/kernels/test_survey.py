"""Finding a model's convolutions: their shapes and the directions that they are needed in, by one look."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine.convolutions import survey
from engine.interfaces import DIRECTIONS
from engine.plugins.kernels import Naive

SHAPE = (4, 3, 12, 10)


def network(*layers: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*layers)


def test_the_survey_sees_every_layer_as_it_will_be_called():
    model = network(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Sequential(nn.ReLU(), nn.Conv2d(8, 4, (3, 1), stride=(1, 2), groups=2)),
    ).double()
    first, second = survey(model, SHAPE)
    assert (first.name, second.name) == ("0", "2.1")
    assert first.spec.input_shape == (4, 3, 12, 10)
    assert (first.spec.weight_shape, first.spec.padding) == ((8, 3, 3, 3), (1, 1))
    assert second.spec.input_shape == (4, 8, 6, 5)
    assert (second.spec.stride, second.spec.groups, second.spec.dtype) == ((1, 2), 2, torch.float64)


def test_the_survey_leaves_the_model_and_the_generator_as_they_were():
    model = network(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 3))
    model[1].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    survey(model, SHAPE)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.c(input=images)


def test_a_layer_may_be_called_by_keyword():
    model = ByKeyword()
    (layer,) = survey(model, SHAPE)
    assert (layer.spec.input_shape, layer.directions) == (SHAPE, (DIRECTIONS[0], DIRECTIONS[2]))
    expected = copy.deepcopy(model)
    Naive().build().apply(model, SHAPE)
    assert model.c._conv_forward.kernels == "naive/native/naive"
    images = torch.randn(SHAPE)
    torch.testing.assert_close(model(images), expected(images))


@pytest.mark.parametrize("seam", ["forward", "_conv_forward"])
def test_a_layer_with_a_function_of_its_own_is_left_alone(seam):
    model = network(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    setattr(model[1], seam, lambda *given: torch.zeros(1))
    own = getattr(model[1], seam)
    first, second = Naive().build().apply(model, SHAPE)
    assert first.kernel == "naive"
    assert (second.kernel, second.reason) == ("native", f"its {seam} was replaced by another function")
    assert getattr(model[1], seam) is own
    assert model[1].weight.is_contiguous(), "its filters are in the order that its function may count on"
    assert torch.equal(model(torch.randn(SHAPE)), torch.zeros(1))


def test_a_failing_model_is_left_as_it_was():
    model = network(nn.Conv2d(3, 4, 3), nn.Linear(99, 1))
    with pytest.raises(RuntimeError):
        survey(model, SHAPE)
    assert model.training
    assert not model[0]._forward_pre_hooks


def test_only_the_needed_directions_are_planned():
    model = network(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].requires_grad_(False)
    forward, to_images, to_weight = DIRECTIONS
    layers = survey(model, SHAPE)
    assert [layer.directions for layer in layers] == [(forward, to_weight), (forward, to_images), DIRECTIONS]
    model[0].requires_grad_(False)  # then nothing before the third layer needs a gradient
    assert [layer.directions for layer in survey(model, SHAPE)] == [(forward,), (forward,), (forward, to_weight)]
    assert {layer.directions for layer in survey(model, SHAPE, training=False)} == {(forward,)}
