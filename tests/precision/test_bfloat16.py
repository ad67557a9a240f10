"""bfloat16 by autocast against torch's own, used by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.plugins.precision import Bfloat16


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, 5))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 3, 9, 9, generator=generator), torch.randint(0, 5, (16,), generator=generator)


def test_gradients_are_those_of_torchs_autocast_to_the_last_bit():
    images, targets = batch()
    by_hand, model = network(), network()
    with torch.autocast("cpu", torch.bfloat16):
        loss = functional.cross_entropy(by_hand(images), targets, reduction="sum")
    loss.backward()
    policy = Bfloat16().build()
    model = policy.convert(model)
    with policy.forward(torch.arange(16)):
        outputs = model(images)
        ours = functional.cross_entropy(outputs, targets, reduction="sum")
    ours.backward()
    assert outputs.dtype == torch.bfloat16
    assert ours.dtype == torch.float32
    assert torch.equal(ours, loss)
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert one.dtype == one.grad.dtype == torch.float32
        assert torch.equal(one.grad, other.grad)
    assert {b.dtype for b in model.buffers() if b.is_floating_point()} == {torch.float32}
    assert torch.equal(model[1].running_var, by_hand[1].running_var)


class Twice(nn.Module):
    """Looks at its own answer, without a gradient, before it gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc(x)
        return self.fc(x)


def test_a_pass_without_gradients_takes_them_from_nobody():
    torch.manual_seed(0)
    model, x, policy = Twice(), torch.randn(4, 6), Bfloat16().build()
    with policy.forward():
        policy.convert(model)(x).float().sum().backward()
    # The gradient of a sum over the outputs is the sum of the inputs, in every row, rounded to bfloat16 once.
    expected = x.bfloat16().double().sum(0).expand(6, 6)
    assert model.fc.weight.grad is not None
    torch.testing.assert_close(model.fc.weight.grad.double(), expected, rtol=2**-8, atol=0)


def test_weights_that_changed_are_cast_anew_within_a_context():
    model, x, policy = nn.Linear(4, 2), torch.ones(1, 4), Bfloat16().build()
    with policy.forward():
        before = policy.convert(model)(x)
        with torch.no_grad():
            model.weight.mul_(2)
            model.bias.mul_(2)
        assert torch.equal(model(x), 2 * before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_exported_computes_in_float32(dtype):
    model = network().to(dtype)
    weights = copy.deepcopy(model.state_dict())
    exported = Bfloat16().build().export(model)
    assert all(torch.equal(p, weights[n].float()) for n, p in exported.named_parameters())
    assert exported.eval()(batch()[0]).dtype == torch.float32
