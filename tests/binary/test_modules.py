"""The layers of one bit as they are trained: values, gradients and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.binary.modules import BinaryConv2d, BinaryLinear, FixedPointInput, Sign, sign


def test_sign_is_plus_one_for_both_zeros_and_its_gradient_is_masked():
    x = torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    y = Sign()(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    y.backward(torch.arange(1.0, 9.0))
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]


def test_a_linear_layer_computes_with_signs_and_its_latent_weights_get_the_gradient_of_the_signs():
    layer = BinaryLinear(5, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1.5, 1.5, 15).view(3, 5))
    x = torch.randn(4, 5)
    y = layer(x)
    signs = torch.where(layer.weight >= 0, 1.0, -1.0)
    assert torch.allclose(y, x @ signs.T + layer.bias)
    y.sum().backward()
    expected = x.sum(0).expand(3, 5) * (layer.weight.abs() <= 1)
    assert torch.allclose(layer.weight.grad, expected)


@pytest.mark.parametrize("value", [-1, 0, 1])
def test_a_convolution_pads_with_its_value(value):
    layer = BinaryConv2d(2, 3, 3, padding=(1, 2), padding_value=value, bias=True)
    x = torch.where(torch.randn(2, 2, 5, 6) >= 0, 1.0, -1.0)
    padded = functional.pad(x, (2, 2, 1, 1), value=float(value)).double()
    signs = torch.where(layer.weight >= 0, 1.0, -1.0).double()
    expected = functional.conv2d(padded, signs) + layer.bias.double().view(-1, 1, 1)
    assert torch.allclose(layer(x).double(), expected, atol=1e-5)


def test_the_scale_is_the_mean_magnitude_and_is_differentiated():
    layer = BinaryLinear(4, 2, bias=False, scaled=True).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    weight = layer.weight.detach()
    magnitude = weight.abs().mean(1)
    assert torch.allclose(layer(x), x @ torch.sign(weight).T * magnitude)
    layer(x).sum().backward()
    sums = x.sum(0) @ torch.sign(weight).T  # what the scale of each output is multiplied with
    through_scale = sums[:, None] * torch.sign(weight) / 4
    through_signs = magnitude[:, None] * x.sum(0) * (weight.abs() <= 1)
    assert torch.allclose(layer.weight.grad, through_scale + through_signs)
    conv = BinaryConv2d(3, 2, 3, scaled=True)
    assert torch.allclose(conv.scale(), conv.weight.abs().flatten(1).mean(1))


def test_parameters_have_the_names_of_plain_layers():
    assert list(BinaryLinear(2, 3).state_dict()) == list(torch.nn.Linear(2, 3).state_dict())
    assert list(BinaryConv2d(2, 3, 1).state_dict()) == list(torch.nn.Conv2d(2, 3, 1).state_dict())


def test_inputs_are_rounded_to_8_bits_and_pass_their_gradient():
    layer = FixedPointInput(5)
    x = torch.tensor([0.0, 1 / 64, 3 / 64, -1 / 64, 10.0, -10.0, 0.97], requires_grad=True)
    y = layer(x)
    assert y.tolist() == [0.0, 0.0, 2 / 32, 0.0, 127 / 32, -4.0, 31 / 32]
    y.sum().backward()
    assert x.grad.tolist() == [1.0] * 7


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="padding_value is 2"):
        BinaryConv2d(1, 1, 3, padding_value=2)
    with pytest.raises(ValueError, match="padding as numbers"):
        BinaryConv2d(1, 1, 3, padding="same")
    with pytest.raises(ValueError, match="padding_mode"):
        BinaryConv2d(1, 1, 3, padding=1, padding_mode="reflect")
    with pytest.raises(ValueError, match="fixed_point is 99"):
        FixedPointInput(99)


def test_sign_works_in_any_float_type_and_under_compile_free_tracing():
    for dtype in (torch.float64, torch.bfloat16):
        assert sign(torch.tensor([-1.0, 2.0], dtype=dtype)).dtype == dtype
