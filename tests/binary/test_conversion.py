"""Ordinary networks converted to one bit, then packed: the same bits, and the first layer in integers too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.binary.conversion import Conversion, binarize, binary_weights
from engine.binary.modules import BinaryConv2d, BinaryLinear
from engine.binary.network import BinaryNetwork
from engine.binary.packing import pack
from engine.plugins.models import MLP

FULL = Conversion("binary_net", input_fraction=4)
XNOR = Conversion("xnor", first=False, last=False, scaled=True)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 20, 3, padding=1),
        nn.BatchNorm2d(20), nn.Hardtanh(), nn.Flatten(), nn.Linear(320, 33), nn.BatchNorm1d(33), nn.ReLU(),
        nn.Linear(33, 4), nn.BatchNorm1d(4),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return MLP(hidden=[45, 33, 40], batch_norm=True, dropout=0.3, input_dropout=0.1).build((3, 8, 8), 4)


@pytest.mark.parametrize("how", [FULL, XNOR], ids=["full", "xnor"])
@pytest.mark.parametrize("network", [convolutional, perceptron])
def test_a_packed_network_has_the_bits_of_the_converted_one(calibrated, how, network):
    images = 2 * torch.randn(64, 3, 8, 8)
    model = calibrated(binarize(network(), how), images)
    told: list[str] = []
    packed = pack(model, images, None, told.append)
    with torch.no_grad():
        expected = model(images)
    assert torch.equal(BinaryNetwork(packed.header, packed.arrays)(images), expected)
    assert torch.equal(expected, model.train().eval()(images))
    assert len(told) == (0 if how is FULL else 2)  # the real first and last layer


def test_the_first_layer_rounds_its_inputs_to_8_bits():
    model = binarize(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)), FULL)
    images = torch.randn(6, 3, 2, 2) * 4
    rounded = (images.double() * 16).round().clamp(-128, 127) / 16
    assert bool((rounded != images).any())
    assert torch.equal(model(images), model(rounded.float()))
    signs = torch.where(model[1].weight >= 0, 1.0, -1.0).double()
    expected = rounded.flatten(1) @ signs.T + model[1].bias.double()
    assert torch.allclose(model[:2](images).double(), expected, atol=1e-5)


def test_layers_shared_by_two_names_stay_shared_and_weights_are_listed_by_name():
    shared = nn.Linear(4, 4)
    model = binarize(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), shared, nn.ReLU(), shared), FULL)
    assert model[2] is model[4]
    assert list(binary_weights(model)) == ["0.weight", "2.weight"]


def test_layers_of_one_bit_that_are_there_already_stay_as_they_are():
    own = BinaryConv2d(1, 3, 3, padding=1, padding_value=1, scaled=True)
    model = binarize(nn.Sequential(own, nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3)), FULL)
    assert model[0] is own
    assert (own.padding_value, own.scaled, own.input_fraction) == (1, True, None)
    assert isinstance(model[3], BinaryConv2d)


def test_a_layer_keeps_its_mode_and_hooks():
    layer = nn.Linear(3, 2).eval()
    seen: list[torch.Size] = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    made = BinaryLinear.of(layer)
    assert not made.training
    made(torch.randn(4, 3))
    assert seen == [torch.Size([4, 2])]
    with pytest.raises(ValueError, match="bits behind the point are 17"):
        BinaryLinear.of(layer, input_fraction=17)
