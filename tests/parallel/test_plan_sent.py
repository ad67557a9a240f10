"""A plan's bytes against those that real runs count and that their network sends."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import planned_runs

from engine.plugins import parallel
from engine.plugins.parallel.planning import costs, prediction
from engine.plugins.parallel.planning.costs import Setting, link_of
from engine.plugins.parallel.planning.machine import Machine
from engine.testing import together

SHARE = 8

STRATEGIES = {
    "data": parallel.Data(),
    "half": parallel.Data(compress="bfloat16"),
    "local_sgd": parallel.LocalSGD(every=planned_runs.STEPS),
    **{name: parallel.Hybrid(scheme=name) for name in "abcd"},
    "pairs": parallel.Hybrid(scheme="d", degree=2),
}
RUN = {2: ("data", "half", "local_sgd", "a", "b", "c", "d"), 4: ("data", "a", "d", "pairs")}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Return a function from a world to what its runs counted and sent, by name."""
    folder = tmp_path_factory.mktemp("runs")
    return cache(lambda world: together(world, planned_runs.counted, {name: STRATEGIES[name] for name in RUN[world]},
                                        str(folder / str(world)), world * SHARE)[0])  # fmt: skip


def case(world: int) -> prediction.Case:
    layers, statistics = planned_runs.facts()
    return prediction.Case(layers, statistics, Setting(world, SHARE), Machine(1e11, 1e10), link_of("1Gbit", "50us"))


def predicted(world: int, name: str) -> float:
    here = case(world)
    if name == "local_sgd":
        return costs.sent(costs.local_sgd(here.layers, here.statistics, here.setting, planned_runs.STEPS))
    if name in ("data", "half"):
        setting = replace(here.setting, gradient_bytes=2 if name == "half" else 4)
        return costs.sent(costs.data(here.layers, here.statistics, setting))
    one = prediction.scheme(here, "d" if name == "pairs" else name, 2 if name == "pairs" else world)
    assert one is not None
    return one.sent


@pytest.mark.parametrize(("world", "name"), [(world, name) for world, names in RUN.items() for name in names])
def test_runs_send_what_was_predicted(measured, world, name):
    told, wire, _ = measured(world)[name]
    expected = predicted(world, name)
    assert told == pytest.approx(expected, rel=0.01)
    if name == "data":  # of messages as short as the others' are here, headers are more than a hundredth
        assert wire == pytest.approx(world * expected, rel=0.01)
