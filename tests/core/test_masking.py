"""A cancelled optimiser step leaves every bit, with and without torch's fused kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.masking import maskable, masked_step

GOOD, BAD = torch.tensor(0.0), torch.tensor(1.0)


class Recorder(torch.optim.Optimizer):
    """Writes down the rates it is given; accepts Python numbers only, as some optimisers do."""

    def __init__(self, *peaks: float) -> None:
        super().__init__([{"params": [nn.Parameter(torch.ones(2))], "lr": peak} for peak in peaks], {"lr": 0.0})
        self.rates: list[list[float]] = []
        self.fails = False

    def step(self, closure=None):
        rates = [group["lr"] for group in self.param_groups]
        assert all(type(rate) is float for rate in rates)
        self.rates.append(rates)
        if self.fails:
            raise ArithmeticError


def test_who_can_be_masked_on_the_device():
    parameter = nn.Parameter(torch.ones(2))
    assert maskable(torch.optim.SGD([parameter], fused=True))
    assert maskable(torch.optim.AdamW([parameter], fused=True))
    assert not maskable(torch.optim.SGD([parameter]))
    assert not maskable(Recorder(0.1))


def test_others_are_given_numbers_and_their_tensors_come_back():
    optimizer = Recorder(1.0, 2.0, 3.0)
    tensors = [torch.tensor(0.25), torch.tensor(0.5)]
    optimizer.param_groups[0]["lr"], optimizer.param_groups[2]["lr"] = tensors
    for bad in (GOOD, BAD, torch.tensor([0.0])):
        masked_step(optimizer, bad)
        assert optimizer.param_groups[0]["lr"] is tensors[0]
        assert optimizer.param_groups[1]["lr"] == 2.0
        assert optimizer.param_groups[2]["lr"] is tensors[1]
    assert optimizer.rates == [[0.25, 2.0, 0.5]] * 2, "the bad step must not reach the optimiser"


def test_tensors_come_back_when_the_step_fails():
    optimizer, rate = Recorder(1.0), torch.tensor(0.25)
    optimizer.param_groups[0]["lr"], optimizer.fails = rate, True
    with pytest.raises(ArithmeticError):
        masked_step(optimizer, GOOD)
    assert optimizer.param_groups[0]["lr"] is rate


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_good_step_is_torchs_own_and_a_bad_one_changes_nothing(kind, fused):
    def build(fused: bool) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        parameter = nn.Parameter(torch.linspace(-1, 1, 7))
        settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return parameter, kind([parameter], lr=torch.tensor(0.125), weight_decay=0.01, fused=fused, **settings)

    (ours, optimizer), (plain, reference) = build(fused), build(False)
    reference.param_groups[0]["lr"] = 0.125
    for step in range(6):
        for parameter in (ours, plain):
            parameter.grad = torch.full_like(parameter, float(step + 1)).cos()
        if step in (2, 3):
            before = ours.detach().clone()
            kept = {key: value.clone() for key, value in optimizer.state[ours].items()}
            ours.grad.fill_(torch.nan)
            masked_step(optimizer, BAD)
            assert torch.equal(ours, before)
            assert all(torch.equal(optimizer.state[ours][key], value) for key, value in kept.items())
            continue
        masked_step(optimizer, GOOD)
        reference.step()
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)
