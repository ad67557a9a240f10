"""kernels=auto: the fastest of what the budgets allow, decided once, the same on every process and after a resume."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from installed import choices
from timed import SHAPE, Clock, Named, choice, chooser_of, network

from engine import UsageError
from engine.interfaces import DIRECTIONS
from engine.ops import NATIVE
from engine.plugins.kernels import Auto, Native, auto
from engine.registry import Registry
from engine.testing import small_run
from engine.testing.small import SmallKernels, SmallModel

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from small_run import Watch, assert_same, build_run, everything

ALL = {"native": 4.0, "quick": 2.0, "slow": 6.0}


def kernels_of(chooser, model=None, **settings) -> list[str]:
    return [row.kernel for row in chooser.apply(model or network(), SHAPE, **settings)]


def test_the_fastest_of_each_direction_is_taken(monkeypatch):
    best = {"forward": "quick", "backward_input": "native", "backward_weight": "slow"}
    times = lambda spec, direction, name: 1.0 if name == best[direction] else 2.0  # noqa: E731
    chooser, _ = chooser_of(monkeypatch, times, Named("quick"), Named("slow"))
    model = network()
    rows = chooser.apply(model, SHAPE)
    assert [row.kernel for row in rows] == ["quick / slow", *["quick / native / slow"] * 2]
    assert [row.reason for row in rows] == ["fastest as measured"] * 3
    assert rows[1].milliseconds["forward"] == {"native": 2.0, "quick": 1.0, "slow": 2.0}
    assert model[0]._conv_forward.kernels == "quick/native/slow"


@pytest.mark.parametrize(("time", "taken"), [(3.99, "native"), (3.61, "native"), (3.59, "quick"), (1.0, "quick")])
def test_torchs_own_stays_unless_more_than_the_noise_is_gained(monkeypatch, time, taken):
    chooser, _ = chooser_of(monkeypatch, {"native": 4.0, "quick": time}, Named("quick"))
    assert kernels_of(chooser) == [taken] * 3


@pytest.mark.parametrize(
    ("training", "gain", "taken"),
    [(True, 0.03, "native"), (True, 0.06, "quick"), (False, 0.019, "native"), (False, 0.021, "quick")],
)
def test_a_gain_below_what_the_op_costs_the_host_is_none(monkeypatch, training, gain, taken):
    """In training the gains of a layer's two or three directions count together: 0.1 ms is the price."""
    chooser, _ = chooser_of(monkeypatch, {"native": 0.15, "quick": 0.15 - gain}, Named("quick"))
    rows = chooser.apply(network(), SHAPE, training=training)
    assert [row.kernel for row in rows] == [taken] * 3
    reason = f"others gain {1e3 * gain * (2 if training else 1):.0f} us, less than their call costs"
    assert rows[0].reason == (reason if taken == "native" else "fastest as measured")


def test_where_torchs_own_is_best_the_layer_is_left_alone(monkeypatch):
    chooser, _ = chooser_of(monkeypatch, ALL | {"quick": 5.0}, Named("quick"))
    model = network()
    assert kernels_of(chooser, model) == ["native"] * 3
    assert not any("_conv_forward" in vars(layer) for layer in model)


@pytest.mark.parametrize(
    ("training", "options", "allowed"),
    [
        (True, {}, {"exact", "tiles4"}),
        (False, {}, {"exact", "tiles4", "tiles6"}),
        (True, {"error_budget": 1e-3}, {"exact", "tiles4", "tiles6", "half"}),
        (False, {"error_budget": 2e-6}, {"exact"}),
    ],
)
def test_the_error_budget_excludes_whom_it_should(monkeypatch, training, options, allowed):
    kernels = [Named("exact"), Named("tiles4", 6e-6), Named("tiles6", 1.5e-5), Named("half", 5e-4)]
    chooser, clock = chooser_of(monkeypatch, lambda *_: 1.0, *kernels, **options)
    chooser.apply(network(), SHAPE, training=training)
    assert clock.names() == {"native", *allowed}
    chooser, clock = chooser_of(monkeypatch, lambda *_: 1.0, *kernels, **options)
    chooser.apply(network().double(), SHAPE, training=training)
    assert clock.names() == {"native", "exact", "tiles4", "tiles6", "half"}, "errors are stated for float32"


def test_the_workspace_has_a_limit(monkeypatch):
    kernels = [Named("small", workspace=2 << 20), Named("large", workspace=(2 << 20) + 1)]
    chooser, clock = chooser_of(monkeypatch, lambda *_: 1.0, *kernels, workspace=2)
    chooser.apply(network(), SHAPE)
    assert clock.names() == {"native", "small"}


def test_who_refuses_a_direction_is_not_measured_in_it(monkeypatch):
    chooser, clock = chooser_of(monkeypatch, ALL, Named("quick", refused=["backward_input"]))
    assert kernels_of(chooser) == ["quick", "quick / native / quick", "quick / native / quick"]
    assert all(("quick" in names) == (direction != "backward_input") for _, direction, names, _ in clock.asked)


def test_what_is_not_needed_is_not_measured_and_like_layers_are_measured_once(monkeypatch):
    chooser, clock = chooser_of(monkeypatch, ALL, Named("quick"))
    rows = chooser.apply(network(), SHAPE)
    assert list(rows[0].milliseconds) == ["forward", "backward_weight"]
    asked = sorted((spec.filters, direction) for spec, direction, *_ in clock.asked)
    assert asked == sorted((filters, direction) for filters in (3, 2) for direction in DIRECTIONS)
    chooser, clock = chooser_of(monkeypatch, ALL, Named("quick"))
    chooser.apply(network(), SHAPE, training=False)
    assert sorted((spec.filters, direction) for spec, direction, *_ in clock.asked) == [(2, "forward"), (3, "forward")]
    assert all(prepare for *_, prepare in clock.asked), "evaluations give kernels prepared weights"


def test_every_installed_kernel_that_offers_itself_takes_part(monkeypatch):
    clock = Clock(lambda spec, direction, name: 1.0)
    monkeypatch.setattr(auto, "measure", clock)
    Auto(cache="none", error_budget=1.0).build(choices()).apply(network(), SHAPE)
    assert clock.names() >= {"native", "implicit", "im2col", "fft"}
    assert "naive" not in clock.names(), "measuring it would take minutes"
    assert all(len(names) == len(set(names)) for _, _, names, _ in clock.asked)


def test_single_layers_can_be_decided_by_hand(monkeypatch):
    chooser, clock = chooser_of(monkeypatch, ALL, Named("quick"), Named("slow"), layers=["2:slow"])
    assert kernels_of(chooser) == ["quick", "quick", "slow"]
    assert {spec.filters for spec, *_ in clock.asked} == {3}
    assert set(chooser.plan()["layers"]) == {"0", "1"}


def test_a_plan_is_taken_up_without_measuring(monkeypatch):
    chooser, _ = chooser_of(monkeypatch, ALL, Named("quick"), Named("slow"))
    chooser.apply(network(), SHAPE)
    plan = json.loads(json.dumps(chooser.plan()))
    resumed, clock = chooser_of(monkeypatch, ALL | {"slow": 1.0}, Named("quick"), Named("slow"))
    resumed.load(plan)
    rows = resumed.apply(network(), SHAPE)
    assert [row.kernel for row in rows] == ["quick"] * 3
    assert {row.reason for row in rows} == {"as planned before"}
    assert clock.asked == []
    assert resumed.plan() == plan


def test_all_processes_take_rank_0s_plan(monkeypatch):
    """Two processes, one after the other: what rank 0 shares is what the other one is given."""
    said = []
    first, clock = chooser_of(monkeypatch, ALL, Named("quick"), Named("slow"))
    first.apply(network(), SHAPE, share=lambda value: said.append(json.dumps(value)) or value)
    assert len(clock.asked) == 6
    heard = iter(said)
    share = lambda value: json.loads(next(heard))  # noqa: E731
    other, clock = chooser_of(monkeypatch, ALL | {"slow": 1.0}, Named("quick"), Named("slow"))
    model = network()
    rows = other.apply(model, SHAPE, share=share)
    assert next(heard, None) is None, "both call it equally often"
    assert clock.asked == [], "measuring would disturb rank 0"
    assert [row.kernel for row in rows] == ["quick"] * 3
    assert {row.reason for row in rows} == {"as rank 0 measured"}
    assert model[1]._conv_forward.kernels == "quick/quick/quick"
    assert other.plan() == first.plan()

    heard = iter(said)  # now both go on from a checkpoint
    other.load(json.loads(json.dumps(first.plan())))
    assert {row.reason for row in other.apply(network(), SHAPE, share=share)} == {"as planned before"}

    heard = iter(said)
    poor, _ = chooser_of(monkeypatch, ALL, Named("slow"))
    with pytest.raises(UsageError, match="rank 0 computes '0' with 'quick', which no plugin supplies here: install"):
        poor.apply(network(), SHAPE, share=share)


def test_a_real_measurement_has_a_time_for_every_candidate():
    """Small layers, real kernels, the real clock; which one wins is left to the machine."""
    chooser = Auto(cache="none").build(choices())
    for row in chooser.apply(network(), SHAPE):
        for times in row.milliseconds.values():
            assert set(times) >= {"native", "implicit", "fft"}
            assert all(value > 0 for value in times.values())


def interrupt(step: int):
    def then(run) -> None:
        if run.position.step == step:
            os.kill(os.getpid(), signal.SIGUSR1)

    return then


def test_a_resumed_run_computes_with_the_same_kernels_and_gets_the_same_weights(monkeypatch, tmp_path):
    registry = Registry.load()
    settings = {"kernels": Auto(cache="none"), "run": {"steps": 8, "batch": 32}}
    best = {"forward": "fft", "backward_input": "implicit", "backward_weight": "im2col"}
    monkeypatch.setattr(auto, "measure", Clock(lambda spec, direction, name: 1.0 if name == best[direction] else 2.0))
    undisturbed = build_run(registry, tmp_path / "whole", **settings)
    assert "fft" in undisturbed.tables[0]
    undisturbed.fit()
    interrupted = build_run(registry, tmp_path / "parts", observe={"watch": Watch(then=interrupt(3))}, **settings)
    assert interrupted.fit() == "stopped by SIGUSR1"
    interrupted.lock.close()
    clock = Clock(lambda spec, direction, name: 1.0 if name == "native" else 2.0)  # now torch's own would win
    monkeypatch.setattr(auto, "measure", clock)
    resumed = build_run(registry, tmp_path / "parts", resume="auto", **settings)
    assert resumed.position.step == 3
    assert clock.asked == []
    assert resumed.model[0]._conv_forward.kernels == "fft/native/im2col"
    assert "as planned before" in resumed.tables[0]
    assert resumed.fit() == "done"
    assert_same(everything(undisturbed), everything(resumed))
    # The kernels do matter: with torch's own the last bits differ.
    native = build_run(registry, tmp_path / "native", run=settings["run"])
    native.fit()
    ours, theirs = everything(undisturbed), everything(native)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_without_convolutions_has_nothing_to_choose(monkeypatch, tmp_path):
    class Flat(SmallModel):
        def build(self, inputs, outputs):
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, outputs))

    run = small_run(tmp_path, kernels=Auto(cache="none"), model=Flat(), steps=2)
    assert run.fit() == "done"
    assert run.kernels.plan() == {}


def test_a_choice_without_a_kernel_of_its_own_stands_in_nobodys_way(monkeypatch):
    clock = Clock(ALL)
    monkeypatch.setattr(auto, "measure", clock)
    installed = {"native": Native, "third": choice(Named("quick")), "small": SmallKernels, "auto": Auto}
    assert kernels_of(Auto(cache="none").build(installed)) == ["quick"] * 3
    assert clock.names() == {"native", "quick"}


def test_where_only_torchs_own_may_compute_nothing_is_measured(monkeypatch):
    chooser, clock = chooser_of(monkeypatch, {"native": 1.0}, Named("quick"), Named("fast"), error_budget=1e-9)
    rows = chooser.apply(network(), SHAPE)
    assert {row.kernel for row in rows} == {"native"}
    assert {row.reason for row in rows} == {"no other kernel may: its error of 1.0e-06 exceeds the budget of 1.0e-09"}
    assert clock.asked == []
    chooser, clock = chooser_of(monkeypatch, {"native": 1.0})
    assert {row.reason for row in chooser.apply(network(), SHAPE)} == {"there is no other kernel"}
    assert clock.asked == []
    chooser, clock = chooser_of(monkeypatch, ALL, Named("quick", refused=["forward", "backward_weight"]))
    rows = chooser.apply(network(), SHAPE)
    assert [row.kernel for row in rows] == ["native", *["native / quick / native"] * 2]
    assert clock.names() == {NATIVE.name, "quick"}, "its times are in the table, beside the one that is contested"


def test_layers_with_and_without_a_bias_are_measured_as_they_are(monkeypatch):
    model = network()
    model.append(torch.nn.Conv2d(2, 2, 3, bias=False))
    model.append(torch.nn.Conv2d(2, 2, 1))
    model[-1].bias.requires_grad_(False)
    chooser, clock = chooser_of(monkeypatch, ALL, Named("quick"))
    chooser.apply(model, SHAPE)
    forward, to_images, to_weight = DIRECTIONS
    found = {(spec.channels, spec.filters, spec.kernel[0], direction) for spec, direction in clock.biased}
    both = {(3, 3, 3), (3, 2, 1)}
    assert found == {(*sizes, d) for sizes in both for d in (forward, to_weight)} | {(2, 2, 1, forward)}
    assert any(direction == to_images for _, direction, *_ in clock.asked)
