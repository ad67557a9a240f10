"""A plan that kernels=auto goes on with: kept where it fits, and where it does not, the reason is told."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from installed import choices
from timed import SHAPE, Clock, Named, chooser_of, network

from engine.interfaces import DIRECTIONS
from engine.plugins.kernels import Auto, auto
from engine.registry import Registry

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from small_run import build_run

TIMES = {"native": 4.0, "quick": 2.0, "slow": 6.0, "rough": 1.0}
ROUGH = 5e-6  # an error within the budget of training


@pytest.fixture
def plan(monkeypatch):
    """Return the plan of a run whose layers were all computed by ``rough``."""
    chooser, _ = chooser_of(monkeypatch, TIMES, Named("quick"), Named("rough", ROUGH, 10 << 20))
    assert {row.kernel for row in chooser.apply(network(), SHAPE)} == {"rough"}
    return json.loads(json.dumps(chooser.plan()))


def resumed(monkeypatch, plan, *kernels, model=None, shape=SHAPE, **options):
    """Return the rows of a run that goes on with a plan, and the clock."""
    chooser, clock = chooser_of(monkeypatch, TIMES, *kernels, **options)
    chooser.load(plan)
    return chooser.apply(model or network(), shape), clock


SAME = (Named("quick"), Named("rough", ROUGH, 10 << 20))
CAUSES = {
    "gone": ((Named("quick"),), {}, "planned 'rough' before, which no installed plugin supplies"),
    "error_budget": (
        SAME, {"error_budget": 2e-6},
        "planned 'rough' before, which is not allowed now (its error of 5.0e-06 exceeds the budget of 2.0e-06)",
    ),
    "workspace": (
        SAME, {"workspace": 9},
        "planned 'rough' before, which is not allowed now (it needs 10.0 MiB, more than kernels.workspace=9)",
    ),
    "refuses": (
        (Named("quick"), Named("rough", refused=["forward"])), {},
        "planned 'rough' before, which is not allowed now (it has no such direction)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CAUSES)
def test_a_kernel_that_may_not_compute_any_more_is_named_with_the_reason(monkeypatch, plan, kind):
    kernels, options, cause = CAUSES[kind]
    rows, clock = resumed(monkeypatch, plan, *kernels, **options)
    assert {row.reason for row in rows} == {f"{cause}: measured anew, numbers will differ"}
    assert {row.kernel.split(" ")[0] for row in rows} == {"quick"}
    assert len(clock.asked) == 6
    assert not any(row.milliseconds for row in rows), "the table of times has no room for reasons"


def test_where_nothing_else_may_compute_that_is_told_too(monkeypatch, plan):
    rows, clock = resumed(monkeypatch, plan, Named("quick"), error_budget=1e-9)
    assert clock.asked == []
    cause, own = CAUSES["gone"][2], "its error of 1.0e-06 exceeds the budget of 1.0e-09"
    assert {row.reason for row in rows} == {f"{cause}; now no other kernel may: {own}"}


def thawed_less(model):
    model[2].requires_grad_(False)


def strided(model):
    model[2] = torch.nn.Conv2d(3, 2, 1, stride=2)


@pytest.mark.parametrize(
    ("change", "shape", "reasons"),
    [
        (
            thawed_less, SHAPE,
            ["", "", f"planned for {', '.join(DIRECTIONS)} before, now needed for {', '.join(DIRECTIONS[:2])}"],
        ),
        (strided, SHAPE, ["", "", "planned for another filter, stride, padding, dilation or groups before"]),
        (torch.nn.Module.double, SHAPE, ["planned for torch.float32 before, now torch.float64"] * 3),
        (None, (2, *SHAPE[1:]), ["planned for images of 4x3x12x10 before, now 2x3x12x10"] * 3),
    ],
)  # fmt: skip
def test_what_differs_of_a_layer_is_told(monkeypatch, plan, change, shape, reasons):
    model = network()
    if change:
        change(model)
    rows, _ = resumed(monkeypatch, plan, *SAME, model=model, shape=shape)
    for row, reason in zip(rows, reasons, strict=True):
        expected = f"{reason}: measured anew" if reason else "as planned before"
        assert row.reason.removesuffix(", numbers will differ") == expected
        assert row.kernel == "rough"


def test_a_layer_that_the_plan_has_not_is_measured(monkeypatch, plan):
    rows, clock = resumed(monkeypatch, plan, *SAME, model=network().append(torch.nn.Conv2d(2, 5, 1)))
    assert [row.reason for row in rows] == ["as planned before"] * 3 + ["fastest as measured"]
    assert {spec.filters for spec, *_ in clock.asked} == {5}


@pytest.mark.parametrize("plan", [{}, {"conv1": "another chooser's"}, {"layers": ["conv1"]}])
def test_a_plan_of_another_kind_says_nothing(monkeypatch, plan):
    rows, clock = resumed(monkeypatch, plan, *SAME)
    assert {row.reason for row in rows} == {"fastest as measured"}
    assert len(clock.asked) == 6


def test_another_instruction_set_is_told_of(monkeypatch):
    best = {"forward": "implicit", "backward_input": "native", "backward_weight": "native"}
    monkeypatch.setattr(auto, "measure", Clock(lambda spec, direction, name: 1.0 if name == best[direction] else 2.0))
    chooser = Auto(cache="none").build(choices())
    chooser.apply(network(), SHAPE)
    plan = json.loads(json.dumps(chooser.plan()))
    here, plan["instruction_set"] = plan["instruction_set"], "another"
    again = Auto(cache="none", layers=["2:fft"]).build(choices())
    again.load(plan)
    rows = again.apply(network(), SHAPE)
    expected = f"as planned before, but for another: here {here}, numbers will differ"
    assert [row.reason for row in rows] == [expected, expected, "kernels.layers"]
    assert again.plan()["instruction_set"] == here
    assert {row.kernel.split(" ")[0] for row in rows[:2]} == {"implicit"}


def test_torchs_own_and_third_parties_kernels_know_no_instruction_set(monkeypatch, plan):
    plan = copy.deepcopy(plan) | {"instruction_set": "another"}
    rows, _ = resumed(monkeypatch, plan, *SAME)
    assert {row.reason for row in rows} == {"as planned before"}


def test_a_resumed_run_obeys_the_budget_typed_at_the_resume(monkeypatch, tmp_path):
    registry = Registry.load()
    monkeypatch.setattr(auto, "measure", Clock(lambda spec, direction, name: 1.0 if name == "winograd4" else 2.0))
    settings = {"run": {"steps": 2, "batch": 32}}
    run = build_run(registry, tmp_path / "run", kernels=Auto(cache="none"), **settings)
    run.fit()
    run.lock.close()
    assert run.model[0]._conv_forward.kernels.startswith("winograd4/")
    again = build_run(
        registry, tmp_path / "run", resume="auto", kernels=Auto(cache="none", error_budget=2e-6), **settings
    )
    again.lock.close()
    assert "_conv_forward" not in vars(again.model[0])
    assert "planned 'winograd4' before, which is not allowed now" in again.tables[0]
    assert "measured anew, numbers will differ" in again.tables[0]
