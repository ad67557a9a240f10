"""Values that are not finite: masked on the device, and named in words."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_run import Tiny, everything
from torch import nn

from engine import Batch, Model, RunFailed
from engine.diagnosis import name_culprit
from engine.guard import Guard
from engine.interfaces import Precision, Strategy

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")

pytestmark = pytest.mark.usefixtures("one_thread")


class Alone(Strategy):
    rank, world = 0, 1


class OtherIsBad(Strategy):
    """A process whose partner has met a value that is not finite."""

    rank, world = 0, 2

    def agree(self, bad):
        return bad.fill_(1.0)


def checked(guard: Guard, *values: float, flag: float | None = None, strategy: Strategy | None = None) -> bool:
    """Return whether the step would be applied."""
    tensors = [torch.tensor(value) for value in values]
    bad = guard.check(tensors, None if flag is None else torch.tensor(flag), strategy or Alone())
    applied = guard.settle()
    assert bad.dtype == torch.float32
    assert applied.dtype == torch.bool
    assert bad.item() == (0.0 if applied else 1.0)
    return bool(applied)


def test_stop_latches_at_the_first_bad_value():
    guard = Guard(nn.Linear(1, 1), "stop", CPU)
    assert [checked(guard, v) for v in (1.0, -1e30, NAN, 1.0, 2.0)] == [True, True, False, False, False]
    assert guard.telemetry(Alone())["latched"].item() == 1.0


def test_skip_leaves_out_and_counts_the_bad_steps_alone():
    guard = Guard(nn.Linear(1, 1), "skip", CPU)
    values = [(1.0, 2.0), (1.0, INF), (-INF, 0.0), (1.0, 2.0), (NAN, NAN), (0.0, 0.0)]
    assert [checked(guard, *pair) for pair in values] == [True, False, False, True, False, True]
    assert guard.telemetry(Alone())["train/skipped"].item() == 3


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_an_overflow_of_the_loss_scale_leaves_out_one_step_and_never_latches(policy):
    guard = Guard(nn.Linear(1, 1), policy, CPU)
    assert checked(guard, 1.0)  # a precision may look only now and then, so it may have given no flag before
    assert [checked(guard, 1.0, flag=flag) for flag in (0.0, 1.0, 1.0, 0.0)] == [True, False, False, True]
    assert guard.latched.item() == 0.0
    assert checked(guard, 1.0)
    assert not checked(guard, NAN, flag=0.0)
    assert checked(guard, 1.0, flag=0.0) == (policy == "skip")


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_one_process_is_enough_to_mask_the_step_everywhere(policy):
    guard = Guard(nn.Linear(1, 1), policy, CPU)
    assert not checked(guard, 1.0, strategy=OtherIsBad())
    assert checked(guard, 1.0) == (policy == "skip")


def test_what_is_checked_keeps_its_value_in_every_type():
    guard = Guard(nn.Linear(1, 1), "stop", CPU)
    values = [torch.rand(3, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    before = [value.clone() for value in values]
    guard.check(values, None, Alone())
    assert all(torch.equal(value, kept) for value, kept in zip(values, before, strict=True))
    assert guard.settle()
    guard.check([torch.ones(3), torch.tensor([1.0, NAN], dtype=torch.float64)], None, Alone())
    assert not guard.settle()


def test_what_a_step_was_told_is_not_changed_by_later_steps():
    guard = Guard(nn.Linear(1, 1), "skip", CPU)
    told = []
    for value in (1.0, NAN, 2.0):
        guard.check([torch.tensor(value)], None, Alone())
        told.append(guard.settle())
    assert [bool(applied) for applied in told] == [True, False, True]


def test_a_skipped_step_leaves_batchnorms_buffers_bit_equal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    guard = Guard(model, "skip", CPU)
    kept: dict[str, torch.Tensor] = {}
    for value in (1.0, NAN, NAN, 2.0, NAN):
        kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
        loss = model(torch.randn(4, 3, 2, 2) * value).sum()
        guard.check([loss.detach()], None, Alone())
        applied = guard.settle()
        assert bool(applied) == (value == value)
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, kept[name]) == (not applied), name
    assert model[0].num_batches_tracked.item() == 2


def test_buffers_loaded_from_a_checkpoint_are_the_good_ones_once_it_is_told():
    model = nn.BatchNorm1d(2)
    guard = Guard(model, "skip", CPU)
    with torch.no_grad():
        model.running_mean.fill_(5.0)
    guard.keep()
    assert not checked(guard, NAN)
    assert model.running_mean.tolist() == [5.0, 5.0]


def loss_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


class Full(Precision):
    dtype = torch.float32

    def forward(self):
        return nullcontext()


class Log(nn.Module):
    """Not finite for what is negative."""

    def forward(self, x):
        return torch.log(x)


class Pair(nn.Module):
    """Returns two tensors, the second one bad."""

    def forward(self, x):
        return x, x / 0


class InTheOpen(nn.Module):
    """Computes something outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x) / 0


class Root(nn.Module):
    """A finite output whose gradient is not: sqrt at 0."""

    def forward(self, x):
        return x + (x * 0).abs().sqrt()


def batch(value: float = 1.0) -> Batch:
    return Batch(torch.full((2, 4), value), torch.tensor([0, 1]), torch.arange(2))


def named(model: nn.Module, given: Batch | None = None, loss: Any = loss_of) -> str:
    return name_culprit(model, given or batch(), loss, Full())


def test_nothing_is_named_where_all_is_finite():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    assert named(model) == ""
    assert all(parameter.grad is None for parameter in model.parameters()), "a replay leaves no gradients behind"
    assert not model[0]._forward_hooks, "nor hooks"


def test_the_batch_is_named():
    assert named(nn.Linear(4, 3), batch(NAN)) == "the batch itself holds values that are not finite"
    soft = Batch(torch.ones(2, 4), torch.full((2, 3), INF), torch.arange(2))
    assert named(nn.Linear(4, 3), soft) == "the batch itself holds values that are not finite"


def test_the_weights_are_named():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].bias[1] = NAN
    assert named(model) == "'1.bias' holds values that are not finite"


@pytest.mark.parametrize("inner", [Log(), Pair()])
def test_the_first_bad_layer_is_named(inner):
    class Last(nn.Module):
        def forward(self, x):
            return x[0] if isinstance(x, tuple) else x

    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Identity(), inner), Last(), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.fill_(-1.0)
    assert named(model) == "the output of layer '1.1' is the first that is not finite"


def test_what_happens_outside_of_any_layer_is_not_blamed_on_the_loss():
    assert named(InTheOpen()) == "the output of layer 'InTheOpen' is the first that is not finite"
    assert named(nn.Sequential(InTheOpen())) == "the output of layer '0' is the first that is not finite"


def test_the_loss_is_named():
    name = named(nn.Linear(4, 3), loss=lambda outputs, targets: outputs.sum() / 0)
    assert name == "every layer's output is finite, the loss is not"


def test_the_gradient_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Root(), nn.Linear(4, 3))
    assert named(model) == "every output is finite, the gradient of '1.bias' is not"


def test_a_failing_replay_takes_its_hooks_away():
    model = nn.Linear(4, 3)
    with pytest.raises(IndexError):
        named(model, Batch(torch.ones(2, 4), torch.tensor([0, 7]), torch.arange(2)))
    assert not model._forward_hooks


@dataclass
class Spoiled(Model):
    """Tiny with a module that spoils the output, or its gradient, in one training step."""

    at: int = 4
    how: str = "output"

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return nn.Sequential(Tiny(dropout=0.0).build(inputs, outputs), Spoil(self.at, self.how))


class Spoil(nn.Module):
    def __init__(self, at: int, how: str) -> None:
        super().__init__()
        self.at, self.how, self.count, self.only = at, how, 0, torch.tensor(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        self.count += 1
        if self.count == self.at:
            self.only = x.detach().flatten()[0].clone()
        if self.count < self.at or x.detach().flatten()[0] != self.only:
            return x  # also when the step is replayed, only the same batch is spoiled
        return x / 0 if self.how == "output" else x + (x * 0).abs().sqrt()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("output", "the output of layer '1' is the first that is not finite"),
        ("gradient", "every output is finite, the gradient of '0.6.bias' is not"),
    ],
)
def test_a_run_stops_with_the_weights_from_before_and_names_step_and_layer(make, how, words):
    good = make("good", model=Spoiled(at=99), schedule="constant", run={"steps": 3})
    good.fit()
    run = make("run", model=Spoiled(at=4, how=how), schedule="constant", run={"epochs": 1})
    with pytest.raises(
        RunFailed, match=rf"^step 4: {words}; no later step was applied \(run.nonfinite=skip goes on\)$"
    ):
        run.fit()
    assert run.position.step == 5, "it is told when the log is read"
    assert run.outcome == "failed"
    assert int(run.rates.updates) == 3
    before = dict(good.model.named_parameters())
    assert before
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.named_parameters())


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("how", ["output", "gradient"])
def test_a_run_that_skips_goes_on_with_finite_weights(make, how, clip):
    run = make("run", model=Spoiled(at=4, how=how), run={"epochs": 1, "nonfinite": "skip", "ema": 0.9, "clip": clip})
    assert run.fit() == "done"
    state = everything(run)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert int(run.guard.skipped) == 1
    assert int(run.rates.updates) == run.steps - 1
    assert run.model.get_buffer("0.1.num_batches_tracked").item() == run.steps - 1


def test_an_overflow_of_a_scaled_loss_leaves_no_trace_in_batchnorm():
    """Policy "stop" does not latch on it; the step alone is left out, and counted."""
    model = nn.Sequential(nn.BatchNorm2d(2))
    guard = Guard(model, "stop", torch.device("cpu"), scaled=True)
    model(torch.randn(4, 2, 3, 3))
    guard.check([torch.tensor(1.0)], torch.tensor(0.0), Alone())
    assert bool(guard.settle())
    good = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.full((4, 2, 3, 3), float("inf")))
    guard.check([torch.tensor(1.0)], torch.tensor(1.0), Alone())
    assert not bool(guard.settle())
    assert all(torch.equal(value, good[name]) for name, value in model.state_dict().items())
    told = {name: float(value) for name, value in guard.telemetry(Alone()).items()}
    assert told == {"train/skipped": 1, "latched": 0}
