"""Pipelines against plain autograd and one process, and what they refuse."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
from apart import Jobs, each
from hypothesis import given
from hypothesis import strategies as st

from engine import UsageError, checkpoint
from engine.manifest import checkpoints
from engine.options import EvaluateOptions
from engine.plugins.models import ResNet20
from engine.plugins.parallel import Pipeline, Single
from engine.plugins.parallel.pipeline.splitting import Segments, balanced
from engine.plugins.parallel.pipeline.strategy import owners
from engine.testing import check_strategy, small_run, together

SEVERAL: dict[str, dict[str, Any]] = {
    "parts": {"model": pipelines.Deep()},
    "batch norm": {"model": pipelines.Deep(norm=True), "evaluate": EvaluateOptions(batch_norm=2)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """Return what two processes have made of all that is asked below, by rank."""
    jobs: Jobs = {
        "gpipe": (pipelines.gradients, ("gpipe", [8, 8, 8], 0)),
        "frozen": (pipelines.gradients, ("1f1b", [4], 6)),
        "parts": (pipelines.told_by, (folder, Pipeline(microbatches=2), "parts", SEVERAL["parts"])),
        "batch norm": (pipelines.told_by, (folder, Pipeline(microbatches=1), "batch norm", SEVERAL["batch norm"])),
        "interrupted": (pipelines.interrupted, (folder, Pipeline(microbatches=2))),
        "sent": (pipelines.sent_by_steps, (folder / "sent", 8)),
    }
    return together(2, each, jobs, timeout=110)


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    """Return what four processes have made of all that is asked below, by rank."""
    jobs: Jobs = {
        "1f1b": (pipelines.gradients, ("1f1b", [8, 8], 0)),
        "refusals": (pipelines.refusals, (folder / "refused",)),
    }
    return together(4, each, jobs, timeout=110)


@pytest.mark.parametrize(
    ("processes", "name", "batches"), [("two", "gpipe", 3), ("two", "frozen", 1), ("four", "1f1b", 2)]
)
def test_gradients_are_those_of_autograd(
    request: pytest.FixtureRequest, processes: str, name: str, batches: int
) -> None:
    stages = [ranks[name] for ranks in request.getfixturevalue(processes)]
    for stage in stages:
        assert stage["asked"] == 2 * list(range(4 * batches))
        assert max(stage[name] for name in ("errors", "norm", "clipped from")) <= 1e-12
        assert stage["clipped"] <= 1e-5  # torch adds 1e-6 to the norm
    *others, last = [stage["loss"] for stage in stages]
    assert others == [0.0] * (len(stages) - 1)
    assert last == pytest.approx(1, rel=1e-12)
    owned = [name for stage in stages for name in stage["owns"]]
    assert len(owned) == len(set(owned))
    assert set(owned) == stages[0]["all"]


def test_alone_it_keeps_what_a_strategy_promises() -> None:
    check_strategy(Pipeline(microbatches=1))


def contents(run: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a run's newest checkpoint."""
    _, files = checkpoint.load(checkpoints(run)[0])
    return {f"{file}/{name}": tensors[name] for file, tensors in files.items() for name in tensors}


@pytest.mark.parametrize("name", ["parts", "batch norm"])
def test_a_run_is_that_of_one_process_and_goes_on_in_one(
    two: list[dict[str, Any]], folder: Path, tmp_path: Path, name: str
) -> None:
    """With BatchNorm, where a micro-batch is one part."""
    told, nothing = (ranks[name] for ranks in two)
    expected = pipelines.told_by(tmp_path, Single(), name, SEVERAL[name])
    assert nothing == []
    assert told == pytest.approx(expected, rel=1e-12)
    ours, theirs = contents(folder / name), contents(tmp_path / name)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-12, atol=1e-12, msg=key)
    goes_on = {**SEVERAL[name], "steps": 9, "resume": "auto"}
    ends = [pipelines.told_by(where, Single(), name, goes_on) for where in (folder, tmp_path)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-12)


def test_it_goes_on_with_what_one_process_has_saved(tmp_path: Path) -> None:
    longer = {**SEVERAL["parts"], "steps": 9}
    expected = pipelines.told_by(tmp_path, Single(), "whole", longer)
    begun = pipelines.told_by(tmp_path, Single(), "parts", SEVERAL["parts"])
    goes_on = longer | {"resume": "auto"}
    told, _ = together(2, pipelines.told_by, tmp_path, Pipeline(microbatches=2), "parts", goes_on)
    assert told[-5:] == pytest.approx(expected[-5:], rel=1e-12)
    assert begun[:3] == expected[:3]


def test_neither_evaluations_nor_an_interruption_change_anything(two: list[dict[str, Any]], folder: Path) -> None:
    whole = contents(folder / "whole")
    assert sum(name.startswith("model.") for name in whole) == 12
    for other in ("often", "in-two"):
        theirs = contents(folder / other)
        assert theirs.keys() == whole.keys()
        differing = [name for name, value in whole.items() if not torch.equal(theirs[name], value)]
        assert [name for name in differing if name != "engine.safetensors/metrics"] == []


def test_what_cannot_be_cut_is_refused(four: list[dict[str, Any]]) -> None:
    for batch, branching, few in (ranks["refusals"] for ranks in four):
        assert batch == "run.batch=6 cannot be cut into parallel.microbatches=4 parts: choose a multiple"
        assert "Branching's forward pass depends on its numbers" in branching
        assert "cut into 3 parts with parameters, which end with 2, 4, 5, not into one for each of 4 processes" in few


def test_bytes_are_those_of_what_passes(two: list[dict[str, Any]]) -> None:
    """Behind the first convolution 1500 channels of 4 x 4 numbers for each of 20 images, and their gradients."""
    for sent in (ranks["sent"] for ranks in two):
        assert sent == pytest.approx(8 * 2 * 20 * 1500 * 16 * 4, rel=0.01)


def test_segments_of_a_residual_network_end_with_its_blocks() -> None:
    model = ResNet20().build((3, 32, 32), 10)
    segments = Segments(model)
    segments.measure(torch.zeros(2, 3, 32, 32))
    names = [part.name for part in segments.parts]
    assert names == ["conv1", "relu", *(f"layer{i}.{j}.relu2" for i in (1, 2, 3) for j in range(3)), "linear"]
    stages = segments.stages(3)
    assert max(stage.cost for stage in stages) < 0.5 * sum(stage.cost for stage in stages)
    images, made = torch.randn(2, 3, 32, 32), None
    model.eval()
    for number, stage in enumerate(stages):
        made = segments.module(stage, number == 0, number == 2)(images if made is None else made)
        if number < 2:
            assert tuple(made.shape) == stage.shape
    assert torch.equal(made, model(images))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.integers(1, 4))
def test_no_other_cuts_are_better_balanced(costs: list[int], count: int) -> None:
    count = min(count, len(costs))

    def dearest(ends: tuple[int, ...]) -> int:
        return max(sum(costs[begin:end]) for begin, end in zip((0, *ends), (*ends, len(costs)), strict=True))

    ends = balanced(costs, count)
    assert len(ends) == count
    assert ends[-1] == len(costs)
    every = [dearest(chosen) for chosen in combinations(range(1, len(costs)), count - 1)]
    assert dearest(tuple(ends[:-1])) == min(every)


def test_a_tied_parameter_is_not_cut_apart() -> None:
    first, last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    last.weight = first.weight
    model = torch.nn.Sequential(first, torch.nn.Tanh(), last)
    segments = Segments(model)
    segments.measure(torch.zeros(2, 4))
    stages = segments.stages(2)
    with pytest.raises(UsageError, match=r"'2\.weight' is used at both ends"):
        owners(model, [segments.module(stage, False, False) for stage in stages])


def test_small_run_alone(tmp_path: Path) -> None:
    assert small_run(tmp_path, parallel=Pipeline(microbatches=2)).fit() == "done"


def refused_schedule(folder: str) -> str:
    run = small_run(Path(folder), parallel=Pipeline(microbatches=1, schedule="1f1b"), steps=1)
    try:
        with pytest.raises(UsageError) as refusal:
            run.fit()
    finally:
        run.lock.close()
    return str(refusal.value)


def test_fewer_parts_than_stages_are_refused_in_one_line(tmp_path: Path) -> None:
    for said in together(2, refused_schedule, str(tmp_path)):
        assert said.startswith("parallel.schedule=1f1b keeps 2 stages busy with at least as many parts, a step has 1")
