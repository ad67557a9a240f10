"""Overflows in a float16 run: single ones leave no trace, those that nothing heals end it with a reason."""

from __future__ import annotations

import pytest
import torch
from floating_runs import Overflowing, finite, run_of
from small_run import Watch, assert_same, everything

from engine import RunFailed
from engine.guard import IN_A_ROW, Guard
from engine.interfaces import Strategy
from engine.plugins.precision import Bfloat16, Float16

CPU = torch.device("cpu")


class Alone(Strategy):
    rank, world = 0, 1


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_scale_that_starts_too_high_is_found_by_leaving_steps_out(tmp_path, policy):
    """A run that starts with 2^30 ends bit-equal to one that starts with what that found, on the batches after."""
    precision = Float16(init_scale=2.0**30, emulate="always")
    settings = {"steps": 12, "log_every": 4, "ema": 0.5, "nonfinite": policy, "evaluate_every": "never"}
    states = []

    def keep(run):
        states.append((int(run.guard.skipped), run.precision.scale().item(), everything(run)))

    run = run_of(tmp_path / "run", precision, observe={"watch": Watch(then=keep)}, run=settings)
    before = everything(run)
    rate = float(run.rates.first)
    assert run.fit() == "done"
    skipped = int(run.guard.skipped)
    assert 3 <= skipped <= 11
    assert [count for count, *_ in states] == [*range(1, skipped + 1), *[skipped] * (12 - skipped)]
    assert [scale for _, scale, _ in states[:skipped]] == [2.0 ** (30 - n) for n in range(1, skipped + 1)]
    for _, _, state in states[:skipped]:  # weights, momentum, statistics, average, counter of updates
        assert_same(state, before)
    assert int(run.rates.updates) == 12 - skipped
    assert run.model.features[1].num_batches_tracked.item() == 12 - skipped
    assert states[skipped][2]["updates"].item() == 1
    assert float(run.rates.first) != rate, "the schedule went on from its beginning, once steps were applied"


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_activations_that_overflow_once_leave_no_trace(tmp_path, policy):
    """In the forward pass: the loss is not finite either, and BatchNorm's statistics behind it would be lost."""
    logged = []

    def keep(run):
        logged.append((float(run.guard.skipped), run.precision.scale().item(), finite(run)))

    run = run_of(
        tmp_path / "run", Float16(init_scale=64.0, emulate="always"), model=Overflowing(first=4, last=4),
        observe={"watch": Watch(then=keep)}, run={"steps": 10, "log_every": 5, "nonfinite": policy},
    )  # fmt: skip
    assert run.fit() == "done"
    assert [skipped for skipped, *_ in logged] == [0.0] * 3 + [1.0] * 7
    assert [scale for _, scale, _ in logged] == [64.0] * 3 + [32.0] * 7
    assert all(good for *_, good in logged)
    assert int(run.rates.updates) == 9


def test_activations_that_always_overflow_end_the_run_and_are_named(tmp_path):
    run = run_of(
        tmp_path / "run", Float16(emulate="always"), model=Overflowing(first=2, last=10**9, factor=1e10),
        run={"steps": 100, "batch": 32, "log_every": 10, "evaluate_every": "never"}, augment=["normalize"],
    )  # fmt: skip
    words = r"the output of layer 'classifier' is the first that is not finite; no later step was applied"
    with pytest.raises(RunFailed, match=rf"^step \d+: {words}"):
        run.fit()
    assert run.position.step == 40, "at the first log after 32 in a row"
    assert int(run.rates.updates) == 1
    assert run.precision.scale().item() == 1.0
    assert finite(run)


def test_a_policy_without_a_scale_stops_at_the_first(tmp_path):
    run = run_of(tmp_path / "run", Bfloat16(), model=Overflowing(first=3, last=3, factor=float("inf")),
                 run={"steps": 10, "log_every": 5})  # fmt: skip
    with pytest.raises(RunFailed, match=r"not finite"):
        run.fit()
    assert int(run.rates.updates) == 2


def checked(guard: Guard, loss: float, flag: float) -> tuple[bool, bool]:
    """Return whether the step is applied, and whether the guard has latched."""
    guard.check([torch.tensor(loss)], torch.tensor(flag), Alone())
    return bool(guard.settle()), bool(guard.latched)


@pytest.mark.parametrize("loss", [1.0, float("nan")])
def test_a_guard_stops_after_so_many_overflows_in_a_row_and_not_before(loss):
    guard = Guard(torch.nn.Linear(1, 1), "stop", CPU, scaled=True)
    assert [checked(guard, loss, 1.0) for _ in range(IN_A_ROW - 1)] == [(False, False)] * (IN_A_ROW - 1)
    assert checked(guard, 1.0, 0.0) == (True, False)
    assert [checked(guard, loss, 1.0) for _ in range(IN_A_ROW - 1)] == [(False, False)] * (IN_A_ROW - 1)
    assert checked(guard, loss, 1.0) == (False, True)
    assert checked(guard, 1.0, 0.0) == (False, True)


def test_a_guard_that_skips_goes_on_for_ever():
    guard = Guard(torch.nn.Linear(1, 1), "skip", CPU, scaled=True)
    assert not any(checked(guard, float("inf"), 1.0)[0] for _ in range(2 * IN_A_ROW))
    assert checked(guard, 1.0, 0.0)[0]
    assert guard.skipped.item() == 2 * IN_A_ROW
