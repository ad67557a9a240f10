"""Local SGD and DiLoCo: against the algorithms in one process, data parallelism and plain runs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import apart
import pytest
import torch
from apart import EXACT, SPOILT, PlainSGD
from told import Told

from engine.plugins.parallel import Data, LocalSGD, Single
from engine.testing import check_strategy, small_run, together


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in one)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def by_outer(world: int) -> dict[str, dict[str, Any]]:
    common = {"optim": PlainSGD(momentum=0.9), **EXACT, "steps": 12}
    return {outer: {"parallel": LocalSGD(every=3, outer=outer), **common} for outer in ("average", "nesterov")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("apart")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """Return what two processes have made of all that is asked below, by rank."""
    plain = {"optim": PlainSGD(), **EXACT, "steps": 9}
    warming = {"optim": PlainSGD(momentum=0.9), **EXACT, "steps": 9}
    trained = {
        "data": {"parallel": Data(), **plain},
        "meeting": {"parallel": LocalSGD(every=1), **plain},
        "data with momentum": {"parallel": Data(), **warming},
        "warming up": {"parallel": LocalSGD(every=5, warm_up=9), **warming},
        **by_outer(2),
    }
    jobs: apart.Jobs = {
        "promises": (check_strategy, (LocalSGD(warm_up=1000),)),
        "trained": (apart.trained_each, (folder, trained)),
        "sent": (apart.sent_by_updates, (folder / "sent", 4)),
        "interfered": (apart.interfered, (folder / "interfered",)),
        "interrupted": (apart.interrupted, (folder, LocalSGD(every=4, outer="nesterov"), [8, 6])),
        "saved": (apart.saved_apart, (folder / "saved",)),
        "resumed": (apart.resumed, (folder / "resumed", folder / "saved", 4, "nesterov")),
        "stopped": (apart.stopped, (folder / "stopped",)),
        "failed": (apart.failed, (folder / "failed",)),
    }
    return together(2, apart.each, jobs, timeout=110)


def test_while_it_warms_up_it_keeps_what_a_strategy_promises(both):
    assert [ranks["promises"] for ranks in both] == [None, None], "a broken promise is raised"


def test_alone_it_keeps_what_a_strategy_promises():
    check_strategy(LocalSGD())


def test_meeting_after_every_step_of_plain_sgd_is_data_parallelism(both):
    for trained in (ranks["trained"] for ranks in both):
        assert largest_difference(trained["meeting"], trained["data"]) <= 1e-12
        assert largest_difference(trained["warming up"], trained["data with momentum"]) <= 1e-12


@pytest.mark.parametrize("world", [2, 3])
def test_processes_come_to_what_the_algorithms_come_to_in_one(request, tmp_path, world):
    if world == 2:
        first, *others = [ranks["trained"] for ranks in request.getfixturevalue("both")]
    else:
        first, *others = together(world, apart.trained_each, tmp_path, by_outer(world))
    for outer in ("average", "nesterov"):
        expected = apart.emulated(tmp_path / f"one-{outer}", world, 3, outer == "nesterov", 0.9, 12)
        assert largest_difference(first[outer], expected) <= 1e-12
        assert all(same(first[outer], other[outer]) for other in others)
    assert largest_difference(first["average"], first["nesterov"]) > 1e-3


def test_apart_they_send_a_share_of_what_data_parallelism_sends(both):
    for data, own in (ranks["sent"] for ranks in both):
        assert own == pytest.approx(data / 4, rel=0.01)


def test_evaluating_saving_and_logging_change_nothing(both):
    (never, often), (never_too, often_too) = (ranks["interfered"] for ranks in both)
    assert same(never, often)
    assert same(never_too, often_too)
    assert not same(never, never_too), "after 12 steps, two since they met, they should be apart"


def test_a_resume_goes_on_as_if_nothing_had_been(both):
    """After step 8, where they have just met, and after step 6, where they are apart."""
    for whole, *parts in (ranks["interrupted"] for ranks in both):
        assert len(parts) == 2
        assert all(same(whole, other) for other in parts)
        assert any(name.startswith("outer/velocity/") for name in whole)


def test_what_is_saved_while_they_are_apart_is_their_mean_to_everybody_else(both, folder, tmp_path):
    (one, loss), (other, _) = (ranks["saved"] for ranks in both)
    assert not same(one, other)
    told = Told()
    saved = str(folder / "saved/checkpoints/step-00000007")
    run = small_run(tmp_path, parallel=Single(), steps=9, resume=saved, observe={"told": told})
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, ((one[name] + other[name]) / 2).to(value.dtype))
    run.evaluate()
    assert [scalars["test/loss"] for scalars in told.evaluated] == pytest.approx(loss, rel=1e-5), (
        "it should be evaluated as their mean too"
    )
    assert run.fit() == "done"


def test_others_go_on_with_the_mean(both, folder, tmp_path):
    """As many with another way to meet, and more of them: they meet as they should."""
    three = together(3, apart.resumed, tmp_path, folder / "saved", 3, "average")
    for ends in ([ranks["resumed"] for ranks in both], three):
        assert [(begun, outcome) for begun, outcome, _ in ends] == [(7, "done")] * len(ends)
        assert all(same(weights, ends[0][2]) for _, _, weights in ends)


def test_one_process_is_one_process(tmp_path):
    """One that meets nobody trains as one process does, to the last bit."""
    alone = apart.trained(tmp_path / "alone", parallel=LocalSGD(every=3), **apart.REAL)
    assert same(alone, apart.trained(tmp_path / "single", parallel=Single(), **apart.REAL))


def test_a_stop_is_heeded_by_all_when_they_meet(both):
    assert [ranks["stopped"] for ranks in both] == [("stopped by SIGUSR1", 6)] * 2


def test_a_number_that_is_not_finite_in_one_process_ends_all(both, tmp_path):
    single = small_run(tmp_path / "single", **SPOILT)
    steps = islice(single.loader.steps(single.position), 5)
    spoilt = [not step.batches[0].images.isfinite().all() for step in steps]
    for error, finite in (ranks["failed"] for ranks in both):
        assert error.startswith(f"step {spoilt.index(True) + 1}: the batch itself holds values that are not finite")
        assert finite, "the weights should be those of before"
