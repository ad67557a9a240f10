"""``parallel=auto``: all processes choose the same, keep a strategy's promises and train."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import planned_runs

from engine import UsageError
from engine.plugins.parallel import Auto
from engine.plugins.parallel.planning import auto, measure, prediction
from engine.plugins.parallel.planning.layers import layers_of
from engine.testing import check_strategy, small_run, together

SHARE = 8


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[tuple[str, tuple[float, float, str]]]:
    """Return, by rank, what two strategies tell of themselves: one is checked, the other trains."""
    return together(2, planned_runs.automatic, str(tmp_path_factory.mktemp("runs")), 2 * SHARE)


def chosen(text: str) -> str:
    return text.partition("chosen ")[2].partition("\n")[0]


def test_it_keeps_what_a_strategy_promises_and_says_what_it_chose(told):
    for promised, _ in told:
        assert chosen(promised).startswith(("data", "hybrid"))
        assert "layer by layer" in promised


def test_all_processes_choose_the_same_and_train(told):
    free = [trained for _, trained in told]
    assert len({chosen(text) for _, _, text in free}) == 1
    sent, _, text = free[0]
    line = next(line for line in text.splitlines() if line.startswith("*"))
    assert chosen(text) in line
    predicted = float(line.removeprefix("*").replace(chosen(text), "").split()[0]) * 1e6
    assert sent == pytest.approx(predicted, rel=0.01)


def test_only_what_may_be_chosen_is_chosen():
    def made(name: str, seconds: float, exact: bool = True) -> prediction.Prediction:
        return prediction.Prediction(name, (), seconds, 0.0, exact)

    of = [
        made("data", 3),
        made("hybrid a", 2),
        made("hybrid d", 1),
        made("layer by layer", 0.5),
        made("async", 0.1, False),
    ]
    assert prediction.chosen(of).name == "hybrid d"
    assert prediction.chosen(of, ["data", "hybrid a"]).name == "hybrid a"
    assert prediction.chosen(of, ["data"]).name == "data"


def test_alone_there_is_nothing_to_choose(tmp_path):
    check_strategy(Auto())
    run = small_run(tmp_path, parallel=Auto())
    assert vars(run.strategy)["_chosen"].length == run.steps, "it is told only after the choice"
    assert run.fit() == "done"
    assert run.strategy.describe() == ""


def test_a_scheme_that_is_none_is_refused():
    with pytest.raises(UsageError, match="no z; choose of a, d"):
        auto.automatic(["a", "z"])


def test_measuring_leaves_the_model_as_it_was():
    model = planned_runs.Wide().build((1, 6, 6), 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers, _ = planned_runs.facts()
    drawn = torch.get_rng_state()
    machine = measure.measure_machine(model, layers, (1, 6, 6), 4, 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training
    linear = next(layer for layer in layers if layer.splits)
    assert machine.seconds(linear, 4) == machine.times[linear.name][4, 1] > 0
    assert machine.seconds(linear, 8, 2) == machine.times[linear.name][8, 2] > 0


def test_a_model_of_linear_layers_alone_is_measured():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 3).requires_grad_(False))
    machine = measure.measure_machine(model, layers := layers_of(model, (1, 6, 6)), (1, 6, 6), 4)
    assert all(machine.seconds(layer, 4) > 0 for layer in layers if layer.kind == "linear")
    assert torch.equal(model(torch.ones(1, 1, 6, 6))[0], model[3](model[1](torch.ones(36)).relu()))


@pytest.mark.parametrize(("start", "byte"), [(1e-3, 1e-8), (0.0, 1e-6), (2e-4, 0.0)])
def test_a_line_is_found_again(start, byte):
    points = [(sent, start + byte * sent) for sent in (4096.0, 262144.0, 4194304.0)]
    assert measure.line(points) == pytest.approx((start, byte), rel=1e-6, abs=1e-12)


def test_a_line_never_begins_below_nothing():
    start, byte = measure.line([(1000.0, 1e-6), (2000.0, 1e-3), (4000.0, 4e-3)])
    assert start == 0
    assert byte > 0
