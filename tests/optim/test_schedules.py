"""Schedules against torch's schedulers and their own definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch.optim import lr_scheduler

from engine import UsageError
from engine.options import Schedule
from engine.plugins.optim import Constant, Cosine, OneCycle, Step

UPDATES = 120


def torchs(updates: int, scheduler: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]) -> list[float]:
    """Return the rates that torch's scheduler gives the updates of a run whose peak rate is 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    moving, rates = scheduler(optimizer), []
    for _ in range(updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        moving.step()
    return rates


def ours(options: Schedule, updates: int = UPDATES) -> list[float]:
    factor = options.build(updates)
    return [factor(update) for update in range(updates)]


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_is_torchs(floor: float) -> None:
    expected = torchs(UPDATES, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=UPDATES, eta_min=floor))
    assert ours(Cosine(floor=floor)) == pytest.approx(expected, abs=1e-12)


def test_step_is_torchs() -> None:
    expected = torchs(UPDATES, lambda o: lr_scheduler.MultiStepLR(o, [30, 60, 90], gamma=0.2))
    assert ours(Step(milestones=[0.25, 0.5, 0.75], gamma=0.2)) == pytest.approx(expected)


def test_warmup_then_cosine_is_torchs_sequence() -> None:
    warm = 12

    def sequence(o: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        rising = lr_scheduler.LinearLR(o, start_factor=1 / warm, total_iters=warm - 1)
        return lr_scheduler.SequentialLR(
            o, [rising, lr_scheduler.CosineAnnealingLR(o, T_max=UPDATES - warm)], milestones=[warm]
        )

    assert ours(Cosine(warmup=0.1)) == pytest.approx(torchs(UPDATES, sequence), abs=1e-12)


@pytest.mark.parametrize("warmup", [0.3, 0.25, 0.123])
def test_each_phase_of_onecycle_is_torchs_with_the_like_annealing(warmup: float) -> None:
    def cycle(annealing: str) -> list[float]:
        return torchs(
            UPDATES - 1,
            lambda o: lr_scheduler.OneCycleLR(
                o, 1.0, UPDATES, pct_start=warmup, anneal_strategy=annealing, div_factor=20, final_div_factor=50
            ),
        )

    peak = warmup * UPDATES - 1
    got = ours(OneCycle(warmup=warmup, start=0.05, final=0.001))
    expected = [
        line if update <= peak else curve
        for update, (line, curve) in enumerate(zip(cycle("linear"), cycle("cos"), strict=True))
    ]
    assert got[:-1] == pytest.approx(expected, abs=1e-12)
    assert got[-1] == pytest.approx(0.001)


@pytest.mark.parametrize("options", [Constant(), Step(), Cosine(), OneCycle(start=0.0)])
def test_warmup_rises_in_equal_steps_to_the_peak(options: Schedule) -> None:
    options.warmup = 0.2  # type: ignore[attr-defined]
    factors = ours(options)
    rises = [b - a for a, b in pairwise(factors[:24])]
    assert rises == pytest.approx([rises[0]] * 23)
    assert rises[0] > 0
    assert max(factors) == pytest.approx(1.0)
    assert factors[23] == pytest.approx(1.0)


def test_constant_is_one() -> None:
    assert ours(Constant()) == [1.0] * UPDATES


@pytest.mark.parametrize("updates", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("options", [Constant, Step, Cosine, OneCycle])
def test_the_shortest_runs_get_a_finite_rate_between_nothing_and_the_peak(
    options: type[Schedule], warmup: float, updates: int
) -> None:
    factors = ours(options(warmup=warmup), updates)  # type: ignore[call-arg]
    assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in factors)
    assert max(factors) > 0


@pytest.mark.parametrize("milestones", [[0.5, 0.25], [0.5, 0.5], [30.0], [-0.1]])
def test_milestones_must_ascend_within_the_run(milestones: list[float]) -> None:
    with pytest.raises(UsageError, match=r"schedule\.milestones=.*between 0 and 1, ascending"):
        Step(milestones=milestones).build(UPDATES)
