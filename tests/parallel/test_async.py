"""Asynchronous training: against one process, its own record, and what is promised of those that come, go and die."""

from __future__ import annotations

import copy
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from async_processes import QUIET, Apart, One, Plain, alone, same
from spoilt import SpoiltData

from engine import RunFailed, UsageError
from engine.options import SaveOptions
from engine.plugins.optim import Adagrad
from engine.plugins.parallel import Async, AsyncReplay
from engine.plugins.parallel.asynchronous.rules import Taken
from engine.plugins.parallel.asynchronous.trace import read
from engine.testing import small_run
from engine.testing.small import momentum_sgd


def ended(server: One) -> tuple[str, dict[str, np.ndarray], int, dict[str, Any], list[Any]]:
    """Return how a server's run ended, its tensors, its step, its strategy's state, and what it said before."""
    *before, (_, outcome, tensors, step, state) = server.until("done")
    return outcome, tensors, step, state, before


@pytest.mark.parametrize("settings", [{"accumulate": 2, "clip": 0.5, "ema": 0.9, "log_every": 7}, {"optim": Adagrad()}])
def test_with_one_worker_it_is_training_in_one_process_bit_for_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    with Apart() as apart:
        server, worker = apart.server(tmp_path / "server", **settings), apart.worker(**settings)
        outcome, tensors, step, *_ = ended(server)
        assert worker.until("done")[-1][1] == "done"
    assert (outcome, step) == ("done", 10)
    assert same(tensors, alone(tmp_path / "alone", **settings))


def made_by(out: Path) -> list[tuple[int, list[Taken]]]:
    """Return who made each update of which steps, as the trace tells."""
    return [(update.worker, update.steps) for update in read(out / "trace.csv")[1]]


def steps_of(out: Path) -> list[int]:
    return [taken.step for _, steps in made_by(out) for taken in steps]


@pytest.mark.parametrize(
    "options",
    [{"n_push": 2, "n_fetch": 3, "staleness_rate": True}, {"compensation": 0.5, "max_staleness": 2}],
)
def test_what_three_workers_did_is_replayed_in_one_process_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"steps": 40, "clip": 1.0, "accumulate": 2, "log_every": 7}
    with Apart() as apart:
        server = apart.server(tmp_path / "server", parallel=options, **settings)
        workers = [apart.worker(waits=None, **settings) for _ in range(3)]
        for worker in workers:
            worker.until("batch")
        for worker in workers:
            worker.tell()
        _, tensors, step, *_ = ended(server)
        assert {worker.until("done")[-1][1] for worker in workers} == {"done"}
    assert step == 40
    assert sorted(steps_of(tmp_path / "server")) == list(range(40))
    assert same(tensors, alone(tmp_path / "replay", parallel=AsyncReplay(trace=str(tmp_path / "server")), **settings))


def test_a_replay_is_of_the_run_that_was_recorded(tmp_path: Path) -> None:
    with Apart() as apart:
        server, _ = apart.server(tmp_path / "server"), apart.worker()
        ended(server)
    replay = AsyncReplay(trace=str(tmp_path / "server"))
    for name, settings in {"run.seed": {"seed": 1}, "run.steps": {"steps": 9}, "run.batch": {"batch": 5}}.items():
        run = small_run(tmp_path / name, parallel=replay, **QUIET | settings)
        with pytest.raises(UsageError, match=name):
            run.fit()


def test_a_killed_worker_stops_nobody_and_its_step_is_made_by_another(tmp_path: Path) -> None:
    with Apart() as apart:
        server, killed = apart.server(tmp_path / "server"), apart.worker(waits=range(10))
        (*_, first) = killed.until("batch")  # it has begun with this step
        other = apart.worker(waits=(5,))
        while other.until("batch")[-1][1] != 5:
            pass
        killed.process.kill()
        new = apart.worker()
        (*_, redone) = new.until("batch")
        other.tell()
        outcome, _, step, state, _ = ended(server)
    assert redone == first  # the step, and the samples
    assert (outcome, step) == ("done", 10)
    assert sorted(steps_of(tmp_path / "server")) == list(range(10))
    assert (state["joins"], state["deaths"]) == (3, 1)


def test_after_the_server_was_killed_the_worker_goes_on_with_the_next_one_bit_for_bit(tmp_path: Path) -> None:
    settings = {"save": SaveOptions("2 steps")}
    with Apart() as apart:
        server, worker = apart.server(tmp_path / "server", waits=(5,), **settings), apart.worker()
        while server.until("step")[-1][1] != 5:
            pass
        server.process.kill()
        again = apart.server(tmp_path / "server", resume="auto", **settings)
        assert again.said() == ("ready", 4)
        outcome, tensors, step, state, _ = ended(again)
        assert worker.until("done")[-1][1] == "done"
    assert (outcome, step, state["version"]) == ("done", 10, 10)
    assert steps_of(tmp_path / "server") == list(range(10))
    assert same(tensors, alone(tmp_path / "alone"))


def test_what_is_too_stale_is_dropped_and_its_step_made_again(tmp_path: Path) -> None:
    with Apart() as apart:
        server = apart.server(tmp_path / "server", parallel={"max_staleness": 1}, log_every=1)
        slow = apart.worker(waits=None)
        slow.until("batch")
        fast = apart.worker(waits=(4,))
        while fast.until("batch")[-1][1] != 4:
            pass
        slow.tell()
        slow.until("batch")  # it has heard that its push was dropped, and got another step
        fast.tell()
        _, _, step, _, before = ended(server)
    assert step == 10
    updates = made_by(tmp_path / "server")
    assert sorted(steps_of(tmp_path / "server")) == list(range(10))
    assert all(number - steps[0].version <= 1 for number, (_, steps) in enumerate(updates))
    assert sum(said[1]["async/dropped_share"] for said in before if said[0] == "log") > 0


def test_a_worker_ahead_of_the_slowest_waits(tmp_path: Path) -> None:
    with Apart() as apart:
        options = {"max_staleness": 2, "beyond": "wait"}
        server, slow = apart.server(tmp_path / "server", parallel=options), apart.worker(waits=(0,))
        slow.until("batch")
        apart.worker()
        while server.until("step")[-1][1] != 3:
            pass
        slow.tell()
        ended(server)
    workers = [worker for worker, _ in made_by(tmp_path / "server")]
    assert workers[:4] == [1, 1, 1, 0]
    assert sorted(steps_of(tmp_path / "server")) == list(range(10))


def test_easgd_is_local_training_drawn_to_a_centre_that_is_drawn_to_it(tmp_path: Path) -> None:
    """Zhang et al. 2015 (1412.6651), algorithm 1, with one worker."""
    alpha, tau = 0.25, 3
    with Apart() as apart:
        options = {"rule": "easgd", "tau": tau, "alpha": alpha}
        server = apart.server(tmp_path / "server", parallel=options, model=Plain())
        apart.worker(model=Plain())
        _, tensors, step, state, _ = ended(server)
    run = small_run(tmp_path / "by_hand", model=Plain())
    centre, own = run.model, copy.deepcopy(run.model)
    optimizer = momentum_sgd(own.parameters(), 0.1)
    for number, each in zip(range(1, 11), run.loader.steps(run.position), strict=False):
        (batch,) = each.batches
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(own(batch.images), batch.targets).backward()
        optimizer.step()
        if number % tau == 0 or number == 10:
            for mine, theirs in zip(own.parameters(), centre.parameters(), strict=True):
                distance = alpha * (mine.detach() - theirs.detach())
                mine.data.sub_(distance)
                theirs.data.add_(distance)
    run.lock.close()
    assert (step, state["version"]) == (10, 4)
    for name, value in centre.state_dict().items():
        np.testing.assert_allclose(tensors[name], value.numpy(), rtol=1e-5, atol=1e-6)


def test_a_worker_of_another_run_is_refused_and_a_server_alone_can_be_stopped(tmp_path: Path) -> None:
    with Apart() as apart:
        server, stranger = apart.server(tmp_path / "server"), apart.worker(seed=1)
        assert "another run.seed" in stranger.until("refused")[-1][1]
        os.kill(server.process.pid, signal.SIGTERM)
        outcome, _, step, _, _ = ended(server)
    assert (outcome, step) == ("stopped by SIGTERM", 0)


def test_a_worker_that_is_asked_to_stop_leaves_what_it_has(tmp_path: Path) -> None:
    with Apart() as apart:
        server = apart.server(tmp_path / "server", parallel={"n_push": 4})
        leaving = apart.worker(waits=(2,))
        while leaving.until("batch")[-1][1] != 2:
            pass
        os.kill(leaving.process.pid, signal.SIGTERM)
        leaving.tell()
        assert leaving.until("done")[-1][1] == "stopped by SIGTERM"
        apart.worker()
        _, _, step, state, _ = ended(server)
    assert (step, state["deaths"]) == (10, 0)
    assert [len(steps) for _, steps in made_by(tmp_path / "server")] == [3, 4, 3]


def test_a_worker_gives_up_where_no_server_comes(tmp_path: Path) -> None:
    run = small_run(tmp_path, parallel=Async(role="worker", server="127.0.0.1:1", patience=0.1, timeout=1.0))
    with pytest.raises(RunFailed, match=r"127\.0\.0\.1:1 has not answered for 0.1 s"):
        run.fit()


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_the_server_finds_or_leaves_out_what_is_not_finite(tmp_path: Path, nonfinite: str) -> None:
    settings = {"data": SpoiltData(), "nonfinite": nonfinite, "steps": 5}
    with Apart() as apart:
        server, worker = apart.server(tmp_path / "server", **settings), apart.worker(**settings)
        said = server.until("failed", "done")[-1]
        batches = [each for each in worker.until("done")[:-1] if each[0] == "batch"]
    if nonfinite == "stop":
        assert "the batch itself holds values that are not finite" in said[1]
        assert any(said[1].startswith(f"step {step + 1}:") for _, step, _ in batches)
    else:
        assert same(said[2], alone(tmp_path / "alone", **settings))
        assert all(np.isfinite(value).all() for value in said[2].values())
