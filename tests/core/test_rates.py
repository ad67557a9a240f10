"""Learning rates on the device against the schedule evaluated in Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from engine.rates import Rates

UPDATES = 17
APPLIED, MASKED = torch.tensor(True), torch.tensor(False)


def wave(update: int) -> float:
    """A factor that never repeats."""
    return 0.5 + 0.4 * math.sin(update) + 0.01 * update


def optimizer_of(*peaks: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": peak} for peak in peaks], lr=9.0)


def now(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("peaks", [(0.1,), (0.1, 0.003, 2.0)])
def test_every_group_has_its_peak_times_the_factor_and_masked_updates_do_not_advance(peaks):
    optimizer = optimizer_of(*peaks)
    rates = Rates(optimizer, wave, UPDATES, torch.device("cpu"))
    done = 0
    for step in range(25):
        assert rates.updates.tolist() == [done]
        assert now(optimizer) == pytest.approx([peak * wave(done) for peak in peaks], rel=1e-7)
        assert float(rates.first) == now(optimizer)[0]
        masked = step % 3 == 2
        rates.advance(MASKED if masked else APPLIED)
        done += not masked
    assert done == UPDATES, "the step after the last update must find a rate too"
    assert now(optimizer) == pytest.approx([peak * wave(UPDATES - 1) for peak in peaks], rel=1e-7)


def test_a_resume_finds_its_rate_by_the_counter():
    optimizer = optimizer_of(0.1, 0.01)
    rates = Rates(optimizer, wave, UPDATES, torch.device("cpu"))
    held = [group["lr"] for group in optimizer.param_groups]
    rates.updates.copy_(torch.tensor([11]))
    rates.look_up()
    assert now(optimizer) == pytest.approx([0.1 * wave(11), 0.01 * wave(11)], rel=1e-7)
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, held, strict=True)), (
        "a captured step reads the tensor it was given"
    )


def test_the_optimiser_steps_with_the_present_rate():
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.5, fused=True)
    rates = Rates(optimizer, wave, UPDATES, torch.device("cpu"))
    for _ in range(5):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        rates.advance(APPLIED)
    assert parameter.item() == pytest.approx(-sum(0.5 * wave(update) for update in range(5)), rel=1e-6)
