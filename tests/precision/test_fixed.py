"""Fixed point: a network by hand in numpy, weights on the grid, resumed runs, the lecture's experiment, and options."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from types import SimpleNamespace

import numpy
import pytest
import torch
from hydra.core.config_store import ConfigStore
from numpy.typing import NDArray
from small_run import Watch, assert_same, build_run, everything
from torch import nn
from torch.nn import functional

from engine import Model, UsageError, cli, hookimpl
from engine.loader import Position
from engine.plugins.precision import DynamicFixed, Fixed
from engine.quantization import Role
from engine.randomness import Key
from engine.registry import Registry
from engine.testing import check_precision

REGISTRY = Registry.load()


def grid(x: NDArray, il: int, fl: int) -> NDArray:
    """Return x rounded to the nearest of <il, fl>, halves to even, as the paper's definition reads."""
    return numpy.clip(numpy.rint(x * 2.0**fl) * 2.0**-fl, -(2.0 ** (il - 1)), 2.0 ** (il - 1) - 2.0**-fl)


@pytest.mark.parametrize("sums", ["float32", "float64"])
def test_a_network_by_hand_has_the_same_weights_to_the_last_bit(sums):
    """Formats are so coarse that every sum is exact in any order; rates and batch are powers of two."""
    options = Fixed(
        il=5, fl=5, weight_il=3, weight_fl=6, activation_gradient=[4, 6], weight_gradient=[4, 8],
        optimizer_state=[4, 7], rounding="nearest", sums=sums,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = options.build()
    model = policy.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
    first, second = model[0], model[2]
    names = ("w1", "b1", "w2", "b2")
    ours = [first.weight, first.bias, second.weight, second.bias]
    weights = {n: grid(p.detach().double().numpy(), 3, 6) for n, p in zip(names, ours, strict=True)}
    momentum = {n: numpy.zeros_like(value) for n, value in weights.items()}
    policy.prepare(model, optimizer, Key.of(0))
    rng = numpy.random.default_rng(0)
    for step in range(12):
        images, targets = rng.standard_normal((16, 6)), rng.integers(-64, 65, (16, 4)) / 32
        given, wanted = torch.from_numpy(images).to(policy.dtype), torch.from_numpy(targets).to(policy.dtype)
        with policy.computing(Position(step, step * 16), False), policy.forward(step * 16 + torch.arange(16)):
            outputs = model(given)
            outputs.backward((outputs.detach() - wanted) / 16)
        policy.unscale(optimizer)
        policy.update(optimizer, torch.zeros(()))
        optimizer.zero_grad()

        x = grid(given.double().numpy(), 5, 5)
        z = grid(x @ weights["w1"].T + weights["b1"], 5, 5)
        hidden = numpy.maximum(z, 0)
        error = grid((grid(hidden @ weights["w2"].T + weights["b2"], 5, 5) - targets) / 16, 4, 6)
        back = grid((error @ weights["w2"]) * (z > 0), 4, 6)
        gradients = {"w1": back.T @ x, "b1": back.sum(0), "w2": error.T @ hidden, "b2": error.sum(0)}
        for name, gradient in gradients.items():
            moved = 0.5 * momentum[name] + grid(gradient, 4, 8)
            weights[name] = grid(weights[name] - 0.25 * moved, 3, 6)
            momentum[name] = grid(moved, 4, 7)
        for name, parameter in zip(names, ours, strict=True):
            assert numpy.array_equal(weights[name], parameter.detach().double().numpy()), (step, name)
            kept = optimizer.state[parameter]["momentum_buffer"]
            assert numpy.array_equal(momentum[name], kept.double().numpy()), (step, name)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_weights_and_momentum_are_on_the_grid_after_every_step(tmp_path, rounding):
    steps = []

    def then(run) -> None:
        steps.append(run.position.step)
        for parameter in run.parameters:
            for value in (parameter, run.optimizer.state[parameter]["momentum_buffer"]):
                values = value.detach().double().numpy()
                assert numpy.array_equal(grid(values, 3, 9), values)

    options = Fixed(weight_il=3, weight_fl=9, rounding=rounding)
    run = build_run(REGISTRY, tmp_path, precision=options, run={"steps": 3}, observe={"watch": Watch(then=then)})
    assert run.fit() == "done"
    assert steps == [1, 2, 3]


def policy_of(options: Fixed) -> dict[Role, tuple[int, int] | None]:
    policy = options.build()
    formats = {role: policy.quantizer(role, "any") for role in Role}
    return {role: None if f is None else (f.il, f.fl) for role, f in formats.items()}


def test_roles_follow_each_other_until_they_are_told():
    assert policy_of(Fixed()) == {
        Role.ACTIVATION: (6, 10), Role.ACTIVATION_GRADIENT: (6, 10), Role.STORED_WEIGHT: (6, 10),
        Role.OPTIMIZER_STATE: (6, 10), Role.WEIGHT: None, Role.BIAS: None, Role.WEIGHT_GRADIENT: None,
        Role.UPDATE: None,
    }  # fmt: skip
    told = Fixed(
        il=4, fl=12, weight_il=2, activation_gradient=[1, 15], weight_gradient=[3, 13], update=[0, 16],
        round_state=False,
    )  # fmt: skip
    assert policy_of(told) == {
        Role.ACTIVATION: (4, 12), Role.ACTIVATION_GRADIENT: (1, 15), Role.STORED_WEIGHT: (2, 12),
        Role.OPTIMIZER_STATE: None, Role.WEIGHT: None, Role.BIAS: None, Role.WEIGHT_GRADIENT: (3, 13),
        Role.UPDATE: (0, 16),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (Fixed(il=20, fl=20), "precision.il, fl: fixed point <20, 20> has 40 bits"),
        (Fixed(weight_fl=30), "precision.weight_il, weight_fl: fixed point <6, 30> has 36 bits"),
        (Fixed(update=[300, -290]), "precision.update: fixed point <300, -290> is beyond"),
        (Fixed(weight_gradient=[1]), r"precision.weight_gradient=\[1\]: write two numbers"),
        (Fixed(il=1, fl=0), "precision.il, fl: .* has 1 bits"),
    ],
)
def test_impossible_formats_are_refused_by_their_option(options, told):
    with pytest.raises(UsageError, match=told):
        options.build()


def test_options_come_from_the_command_line(engine):
    words = ("train", "precision=fixed", "data.size=8", "run.steps=1", "out=run")
    code, _, told = engine(*words, "precision.rounding=up")
    assert (code, told.count("\n")) == (2, 1)
    assert "precision.rounding" in told
    for value, reason in (("[20,10]", ""), ("[4]", "write two numbers"), ("4", "precision.update: a list is needed")):
        code, _, told = engine(*words, f"precision.update={value}")
        assert (code, told.count("\n")) == (2, 1)
        assert "precision.update" in told
        assert reason in told


@pytest.mark.parametrize("options", [Fixed(), Fixed(il=4, fl=12, rounding="nearest", sums="float64")])
def test_it_keeps_the_promises_of_a_policy(options):
    check_precision(options)


def stop_after(step: int):
    def then(run) -> None:
        if run.position.step == step:
            os.kill(os.getpid(), signal.SIGUSR1)

    return then


FULL = {"ema": 0.9, "clip": 1.0, "accumulate": 2, "batch": 64, "log_every": 3, "epochs": 2, "evaluate_every": "never"}


@pytest.mark.parametrize(
    ("precision", "step"),
    [
        (Fixed(update=[2, 14]), 7),
        *((DynamicFixed(calibration=8, calibration_period=3, period=2, rounding="stochastic"), s) for s in (7, 8, 13)),
    ],
    ids=["fixed", "in calibration", "at its end", "after it"],
)
def test_a_run_that_is_resumed_in_an_epoch_equals_the_undisturbed_one(tmp_path, precision, step):
    def made(out: str, resume: str = "none", observe=None):
        where = tmp_path / out
        run = build_run(REGISTRY, where, resume=resume, precision=precision, run=FULL, observe=observe)
        return run, run.fit()

    undisturbed, outcome = made("whole")
    assert outcome == "done"
    assert step % undisturbed.steps_per_epoch
    interrupted, outcome = made("parts", observe={"watch": Watch(then=stop_after(step))})
    assert outcome == "stopped by SIGUSR1"
    assert interrupted.position.step == step
    interrupted.lock.close()
    resumed, outcome = made("parts", resume="auto")
    assert outcome == "done"
    assert_same(everything(undisturbed), everything(resumed))
    assert_same(undisturbed.precision.state(), resumed.precision.state())


def test_a_checkpoint_of_other_formats_is_refused(engine):
    words = ("data.size=8", "run.batch=512", "precision=fixed")
    code, _, told = engine("train", *words, "run.steps=2", "out=run")
    assert code == 0, told
    code, _, told = engine("train", *words, "run.steps=3", "precision.weight_fl=12", "resume=auto", "out=run")
    assert code == 2
    assert "the checkpoint's optimizer_state is <6, 10>, here it is <6, 12>" in told
    code, out, told = engine("evaluate", "checkpoint=run", *words)
    assert code == 0
    assert "accuracy" in out
    assert "trained in" not in told
    code, _, told = engine("evaluate", "checkpoint=run", "precision=float32")
    assert code == 0
    assert "after step 2, in float32 (trained in fixed)\n" in told


def test_other_options_on_a_resume_are_told(engine):
    words = ("data.size=8", "run.batch=512", "precision=fixed", "resume=auto", "out=run")
    for steps, options in enumerate([[], [], ["precision.rounding=nearest"], []], start=1):
        code, _, told = engine("train", *words, f"run.steps={steps}", *options)
        assert code == 0, told
        changed = "precision.rounding=nearest from step 2 on; it was stochastic before"
        assert [line for line in told.splitlines() if line.startswith("precision.")] == [changed] * len(options)


def test_weights_of_any_origin_are_evaluated_on_the_grid():
    torch.manual_seed(0)
    policy = Fixed(weight_il=2, weight_fl=4).build()
    model = policy.convert(nn.Sequential(nn.Linear(20, 10)))
    own = model[0].weight.detach().clone()
    expected = (own.double() * 16).round() / 16
    assert not torch.equal(own.double(), expected)
    with policy.evaluation_weights(model):
        assert torch.equal(model[0].weight.double(), expected)
    assert torch.equal(model[0].weight, own)


def test_an_optimizer_whose_state_would_vanish_is_refused(engine):
    words = ("data.size=8", "precision=fixed", "optim=adamw", "run.steps=2", "out=run")
    code, _, told = engine("train", *words)
    assert code == 2
    assert "AdamW divides by squared gradients" in told
    assert "precision.round_state=false" in told
    code, _, said = engine("train", *words, "precision.round_state=false", "precision.optimizer_state=[3,4]")
    assert code == 2
    assert "leave out precision.optimizer_state" in said
    code, _, told = engine("train", *words, "precision.round_state=false")
    assert code == 0, told


@dataclass
class Attending(Model):
    """A network with a layer that hides its sums."""

    def build(self, inputs, outputs) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(inputs[1] * inputs[2], outputs))
        model[0].attention = nn.MultiheadAttention(8, 1)
        return model


def test_a_layer_that_cannot_be_rounded_is_named_on_the_command_line(engine, monkeypatch):
    registry = Registry.load()
    plugin = SimpleNamespace(engine_options=hookimpl(lambda store: store.add("model", "attending", Attending)))
    registry.register("attending", plugin)
    monkeypatch.setattr(cli.Registry, "load", classmethod(lambda cls: registry))
    code, _, told = engine("train", "data.size=8", "model=attending", "precision=fixed", "out=run")
    ConfigStore.instance().repo.pop("model")  # the store is Hydra's and outlives the command
    assert code == 2
    assert "layer '0.attention' (MultiheadAttention)" in told


def digits_error(rounding: str | None) -> float:
    """Return the share of wrong answers on held-out digits after training a perceptron on a mean-reduced loss."""
    source = REGISTRY.entry("data", "digits").options(size=8)
    train, test = (source.build(split).records(range(len(source.build(split)))) for split in ("train", "test"))
    policy = (
        Fixed(il=8, fl=8, rounding=rounding) if rounding else REGISTRY.entry("precision", "float32").options()
    ).build()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    model = policy.convert(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    policy.prepare(model, optimizer, Key.of(0))
    images, step, batch = train.images / 255, 0, 100
    for _ in range(12):
        for rows in torch.randperm(len(images)).split(batch)[:-1]:
            with policy.computing(Position(step, step * batch), False):
                with policy.forward(step * batch + torch.arange(batch)):
                    loss = functional.cross_entropy(model(images[rows]), train.targets[rows])
                loss.backward()
            policy.unscale(optimizer)
            policy.update(optimizer, torch.zeros(()))
            optimizer.zero_grad()
            step += 1
    with torch.no_grad(), policy.evaluation_weights(model), policy.forward():
        return float((model(test.images / 255).argmax(1) != test.targets).float().mean())


def test_stochastic_rounding_learns_where_the_nearest_does_not():
    """Gupta et al. 2015 in small: the same network, start and format <8,8>; only the rounding differs."""
    float32, stochastic, nearest = map(digits_error, (None, "stochastic", "nearest"))
    assert float32 < 0.08
    assert stochastic < float32 + 0.03
    assert nearest > 0.5
