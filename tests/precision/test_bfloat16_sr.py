"""bfloat16 weights without a master copy: sums that survive, float32 optimisers, steps that leave no trace."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine import Key
from engine.loader import Position
from engine.plugins.optim.optimizers import adamw, sgd
from engine.plugins.precision import Bfloat16SR
from engine.plugins.precision.bfloat16_sr import Bfloat16SR as Policy

ROUNDINGS = ("stochastic", "kahan", "nearest")
GOOD, BAD = torch.zeros(()), torch.ones(())
BFLOAT16 = torch.bfloat16


class Weights(nn.Module):
    """Nothing but a parameter."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)


def ready(model: nn.Module, rounding: str, build: Callable[..., Any], key: int = 0) -> tuple[Policy, Any]:
    """Return a policy and an optimiser that are about to train the model."""
    policy = Bfloat16SR(rounding).build()
    policy.convert(model)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = build([{"params": list(named.values()), "names": list(named), "decays": True}])
    policy.prepare(model, optimizer, Key.of(key))
    return policy, optimizer


def descend(groups: list[dict[str, Any]]) -> Any:
    return sgd(groups, 1.0, 0.0, False, 0.0, decay_all=False)


def add_up(rounding: str, count: int, updates: int, by: float) -> tuple[Tensor, Tensor | None]:
    """Return ones after so many updates, and Kahan's compensation."""
    model = Weights(torch.ones(count))
    policy, optimizer = ready(model, rounding, descend)
    for _ in range(updates):
        model.weight.grad = torch.full((count,), -by)
        policy.update(optimizer, GOOD)
    assert model.weight.dtype == BFLOAT16
    return model.weight.detach().double(), policy.state().get("compensation/weight")


SUM = 1 + 10_000 * 2.0**-12


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_that_the_first_step_does_not_reach_trains_later(momentum):
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    policy, optimizer = ready(model, "nearest", lambda groups: sgd(groups, 0.5, momentum, False, 0.0, decay_all=True))
    for reached in ([0], [0, 1], [0, 1]):
        before = [layer.weight.detach().clone() for layer in model]
        for parameter in model.parameters():
            parameter.grad = None
        for index in reached:
            for parameter in model[index].parameters():
                parameter.grad = torch.ones(parameter.shape)
        policy.update(optimizer, GOOD)
        moved = [not torch.equal(layer.weight, old) for layer, old in zip(model, before, strict=True)]
        assert moved == [0 in reached, 1 in reached]


def test_nearest_loses_updates_below_half_an_ulp():
    values, _ = add_up("nearest", 4, 50, 2.0**-12)
    assert values.tolist() == [1.0] * 4


def test_kahan_ends_within_an_ulp_of_the_sum():
    values, kept = add_up("kahan", 4, 10_000, 2.0**-12)
    assert kept is not None
    assert (values - SUM).abs().max() <= 2.0**-6  # bfloat16 has 8 bits: its ulp from 2 to 4
    assert (values + kept.double() - SUM).abs().max() <= 2.0**-6


def test_stochastic_rounding_ends_at_the_sum_on_average():
    count = 2000
    values, _ = add_up("stochastic", count, 10_000, 2.0**-12)
    # Each rounding has a variance of p (1 - p) ulp^2 with p = 2^-12 / ulp; the ulp is 2^-7 below 2 and 2^-6 above.
    variance = sum(2.0**-12 * (ulp - 2.0**-12) * n for ulp, n in ((2.0**-7, 4096), (2.0**-6, 10_000 - 4096)))
    assert abs(values.mean().item() - SUM) < 4 * math.sqrt(variance / count)
    assert 0.9 < values.var().item() / variance < 1.1


def rmsprop(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=1e-2, momentum=0.5, foreach=False)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda groups: sgd(groups, 0.1, 0.9, True, 1e-3, decay_all=True),
    "adamw": lambda groups: adamw(groups, 1e-2, (0.9, 0.99), 1e-8, 0.1, decay_all=True),
    "torch's RMSprop": rmsprop,
    "torch's Adagrad, whose state exists from the start": lambda groups: torch.optim.Adagrad(groups, lr=1e-2),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_any_optimiser_computes_in_float32_what_it_would_on_float32_weights(name):
    """Nearest rounding, so that a float32 run whose weights are rounded by hand after each step is the same run."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 7, generator=generator).bfloat16().float()
    ours, theirs = Weights(start.clone()), Weights(start.clone())
    policy, optimizer = ready(ours, "nearest", OPTIMIZERS[name])
    group = {"params": [theirs.weight], "names": ["weight"], "decays": True}
    other = OPTIMIZERS[name]([group])
    for step in range(6):
        given = torch.randn(5, 7, generator=generator)
        if step != 2:
            ours.weight.grad, theirs.weight.grad = given.clone(), given.clone()
            policy.update(optimizer, GOOD)
            other.step()
            theirs.weight.data = theirs.weight.data.bfloat16().float()
        else:
            ours.weight.grad = given
            policy.update(optimizer, BAD)
    assert torch.equal(ours.weight.float(), theirs.weight)
    assert not torch.equal(theirs.weight, start)
    assert optimizer.param_groups[0]["params"][0] is ours.weight
    one, two = optimizer.state[ours.weight], other.state[theirs.weight]
    assert set(one) == set(two)
    for entry, value in two.items():
        if isinstance(value, Tensor):
            assert one[entry].dtype == value.dtype
            assert torch.equal(one[entry], value), entry


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int16).clone()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_masked_step_keeps_every_bit(rounding):
    """Also where compensation alone would tip the weight over: half an ulp on an odd number. And the sign of a zero."""
    model = Weights(torch.tensor([1 + 2.0**-7, -0.0, 1.0, -3.0]))
    policy, optimizer = ready(model, rounding, lambda groups: sgd(groups, 0.1, 0.9, False, 0.1, decay_all=True))
    if rounding == "kahan":
        half = torch.tensor([2.0**-8, 0.0, 2.0**-9, 2.0**-7], dtype=BFLOAT16)
        policy.load({"attempts": torch.zeros(1), "compensation/weight": half})
    before = bits(model.weight), copy.deepcopy(policy.state())
    for value in (1.0, float("nan"), float("inf")):
        model.weight.grad = torch.full((4,), value)
        policy.update(optimizer, BAD)
    assert torch.equal(bits(model.weight), before[0])
    after = policy.state()
    assert after.pop("attempts").item() == 3
    assert all(torch.equal(after[name], before[1][name]) for name in after)
    assert optimizer.state[model.weight]["momentum_buffer"].tolist() == [0.0] * 4


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(288, 5))


def loss_of(policy: Policy, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with policy.forward(torch.arange(len(images))):
        return functional.cross_entropy(model(images), targets, reduction="sum")


def test_what_is_bfloat16_and_what_is_not():
    model = network()
    policy, optimizer = ready(model, "stochastic", OPTIMIZERS["adamw"])
    loss = loss_of(policy, model, torch.randn(4, 2, 6, 6), torch.arange(4))
    loss.backward()
    policy.update(optimizer, GOOD)
    narrow = {name for name, p in model.named_parameters() if p.dtype == BFLOAT16}
    assert narrow == {"0.weight", "0.bias", "5.weight", "5.bias"}
    assert {p.dtype for n, p in model.named_parameters() if n not in narrow} == {torch.float32}
    assert {b.dtype for b in model.buffers() if b.is_floating_point()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    kept = [v for entries in optimizer.state.values() for v in entries.values() if isinstance(v, Tensor) and v.ndim]
    assert {value.dtype for value in kept} == {torch.float32}
    assert loss.dtype == torch.float32
    assert all(each.wide.numel() == 0 and each.wide.grad is None for each in policy._narrow.values())


def test_micro_batches_gradients_add_up_in_float32():
    images, targets = torch.randn(6, 2, 6, 6), torch.arange(6) % 5
    model = network().eval()
    policy, _ = ready(model, "stochastic", descend)
    parts = []
    for first in (0, 2, 4):
        model.zero_grad(set_to_none=True)
        loss_of(policy, model, images[first : first + 2], targets[first : first + 2]).backward()
        parts.append([p.grad for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    for first in (0, 2, 4):
        loss_of(policy, model, images[first : first + 2], targets[first : first + 2]).backward()
    for parameter, *each in zip(model.parameters(), *parts, strict=True):
        assert torch.equal(parameter.grad, each[0] + each[1] + each[2])


def test_telemetry_tells_which_share_of_updates_left_no_trace():
    """Updates of a sixteenth of an ulp on three of four weights: none is seen by nearest, 1/16 by stochastic."""
    shares = {}
    for rounding in ROUNDINGS:
        model = Weights(torch.ones(40_000))
        policy, optimizer = ready(model, rounding, descend)
        with policy.computing(Position(0, 0), watched=True):
            model.weight.grad = torch.full((40_000,), -(2.0**-11))
            model.weight.grad[::4] = 0
        policy.update(optimizer, GOOD)
        (tag, share), *more = policy.telemetry().items()
        assert (tag, more) == ("precision/vanished_updates", [])
        shares[rounding] = share.item()
        assert policy.telemetry()[tag].item() == 0.0, "it begins anew"
    assert shares["nearest"] == 1.0
    assert shares["kahan"] == 0.0
    assert abs(shares["stochastic"] - 15 / 16) < 5 * math.sqrt(15 / 16 / 16 / 30_000)


def stepped(key: int, masked_first: int = 0, last: bool = False) -> Tensor:
    torch.manual_seed(0)
    values = torch.randn(8, 4, 3, 3)
    model = Weights(values.contiguous(memory_format=torch.channels_last) if last else values)
    policy, optimizer = ready(model, "stochastic", descend, key)
    gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    for bad in (*[BAD] * masked_first, GOOD):
        model.weight.grad = gradient / 1000
        policy.update(optimizer, bad)
    return bits(model.weight)


def test_draws_depend_on_the_key_and_the_attempted_step_but_not_on_layout():
    assert torch.equal(stepped(1), stepped(1))
    assert torch.equal(stepped(1), stepped(1, last=True))
    assert not torch.equal(stepped(1), stepped(2))
    assert not torch.equal(stepped(1), stepped(1, masked_first=1))


def test_a_later_stage_keeps_what_kahan_kept_and_the_weights():
    model = network()
    policy, optimizer = ready(model, "kahan", OPTIMIZERS["sgd"])
    for _ in range(3):
        loss_of(policy, model, torch.randn(4, 2, 6, 6), torch.arange(4)).backward()
        policy.update(optimizer, GOOD)
        model.zero_grad(set_to_none=True)
    before = {**model.state_dict(), **policy.state()}
    before = {name: value.clone() for name, value in before.items()}
    assert any(value.any() for name, value in before.items() if name.startswith("compensation/"))
    policy.convert(model)
    policy.prepare(model, optimizer, Key.of(1))
    assert all(torch.equal(value, before[name]) for name, value in {**model.state_dict(), **policy.state()}.items())


def test_what_is_exported_has_the_same_values_in_float32():
    model = network()
    policy, _ = ready(model, "stochastic", descend)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exported = policy.export(model).state_dict()
    assert {value.dtype for value in exported.values() if value.is_floating_point()} == {torch.float32}
    assert all(torch.equal(value.double(), before[name].double()) for name, value in exported.items())
