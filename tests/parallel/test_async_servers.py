"""Several servers, each with a part of the weights: against one process and the run's record, and when they die."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from async_processes import QUIET, Apart, One, Wide, alone, everything, same
from commands import QUICK, Command
from spoilt import SpoiltData

from engine import UsageError, manifest
from engine.options import SaveOptions
from engine.plugins.optim import SGD, Adagrad
from engine.plugins.parallel import Async, AsyncReplay, Single
from engine.plugins.parallel.asynchronous.parts import divided
from engine.plugins.parallel.asynchronous.trace import read
from engine.testing import small_run


def ended(server: One) -> tuple[str, dict[str, np.ndarray], int]:
    """Return how the run ended, its tensors and its step."""
    _, outcome, tensors, step, _ = server.until("done", "failed")[-1]
    return outcome, tensors, step


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=12), st.integers(1, 12))
def test_tensors_are_divided_among_servers_evenly(sizes: list[int], servers: int) -> None:
    if servers > len(sizes):
        with pytest.raises(UsageError, match=rf"{len(sizes)} tensors .* give at most {len(sizes)}"):
            divided(sizes, servers)
        return
    parts = divided(sizes, servers)
    assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    assert all(part == sorted(part) and part for part in parts)
    loads = [sum(sizes[index] for index in part) for part in parts]
    # Otherwise the last that the fullest got would have gone to the emptiest.
    assert all(max(loads) - min(sizes[i] for i in parts[loads.index(max(loads))]) <= load for load in loads)


@pytest.mark.parametrize(
    ("servers", "settings"),
    [
        (3, {"optim": SGD(momentum=0.9), "accumulate": 2, "clip": 0.5, "log_every": 7, "evaluate_every": "4 steps"}),
        (2, {"optim": Adagrad(), "log_every": 3}),
    ],
)
def test_with_one_worker_it_is_training_in_one_process_bit_for_bit(
    tmp_path: Path, servers: int, settings: dict[str, Any]
) -> None:
    with Apart() as apart:
        server = apart.server(tmp_path / "server", parallel={"servers": servers}, **settings)
        others = [apart.shard(**settings) for _ in range(servers - 1)]
        others.append(apart.worker(**settings))
        outcome, tensors, step = ended(server)
        assert {other.until("done")[-1][1] for other in others} == {"done"}
    assert (outcome, step) == ("done", 10)
    assert same(tensors, alone(tmp_path / "alone", **settings))


@pytest.mark.parametrize(
    "options", [{"n_push": 2, "n_fetch": 3, "staleness_rate": True}, {"max_staleness": 0, "n_fetch": 2}]
)
def test_what_two_workers_did_is_replayed_in_one_process_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"steps": 30, "clip": 1.0, "log_every": 7}
    with Apart() as apart:
        server = apart.server(tmp_path / "server", parallel={**options, "servers": 2}, **settings)
        apart.shard(**settings)
        workers = [apart.worker(waits=None, **settings) for _ in range(2)]
        for worker in workers:
            worker.until("batch")
        for worker in workers:
            worker.tell()
        _, tensors, step = ended(server)
    updates = read(tmp_path / "server")[1]
    assert step == 30
    assert {update.worker for update in updates} == {0, 1}
    assert sorted(taken.step for update in updates for taken in update.steps) == list(range(30))
    assert same(tensors, alone(tmp_path / "replay", parallel=AsyncReplay(trace=str(tmp_path / "server")), **settings))


def test_half_of_the_bytes_pass_through_each_of_two_servers(tmp_path: Path) -> None:
    settings = {"model": Wide(), "steps": 20}
    counted = []
    with Apart() as apart:
        for servers in (1, 2):
            server = apart.server(tmp_path / str(servers), parallel={"servers": servers}, **settings)
            apart.worker(**settings)
            if servers == 2:
                apart.shard(**settings)
            counted.append(server.until("bytes")[-1][1])
            ended(server)
    one, two = counted
    weights = 4 * (37 * 144 + 4 * 145 * 144 + 145 * 3)
    assert one > 40 * weights  # a gradient there and weights back, for each step
    # Half of that, as nearly as whole tensors can be halved; the other half goes there once, and comes back for the
    # checkpoint, with its momentum both times.
    assert 0.5 * one < two < 0.53 * one + 2 * weights


def test_after_the_server_that_leads_was_killed_all_go_on_with_the_next_one_bit_for_bit(tmp_path: Path) -> None:
    settings, options = {"save": SaveOptions("2 steps"), "optim": SGD(momentum=0.9)}, {"servers": 2}
    with Apart() as apart:
        server = apart.server(tmp_path / "server", parallel=options, waits=(5,), **settings)
        others = [apart.shard(**settings), apart.worker(**settings)]
        while server.until("step")[-1][1] != 5:
            pass
        server.process.kill()
        again = apart.server(tmp_path / "server", parallel=options, resume="auto", **settings)
        assert again.said() == ("ready", 4)
        outcome, tensors, step = ended(again)
        assert {other.until("done")[-1][1] for other in others} == {"done"}
    assert (outcome, step) == ("done", 10)
    assert same(tensors, alone(tmp_path / "alone", optim=SGD(momentum=0.9)))


def test_after_a_server_of_a_part_was_killed_the_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    settings, options = {"save": SaveOptions("2 steps")}, {"servers": 2}
    with Apart() as apart:
        server = apart.server(tmp_path / "server", parallel=options, waits=(5,), **settings)
        part, worker = apart.shard(), apart.worker()
        while server.until("step")[-1][1] != 5:
            pass
        part.process.kill()
        server.tell()
        assert "server 2 of 2" in server.until("failed", "done")[-1][1]
        server.process.kill()
        again = apart.server(tmp_path / "server", parallel=options, resume="auto", **settings)
        apart.shard()
        assert again.said() == ("ready", 4)
        outcome, tensors, step = ended(again)
        assert worker.until("done")[-1][1] == "done"
    assert (outcome, step) == ("done", 10)
    assert same(tensors, alone(tmp_path / "alone"))


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_what_is_not_finite_in_another_servers_part_is_found_or_left_out(tmp_path: Path, nonfinite: str) -> None:
    settings = {"data": SpoiltData(), "nonfinite": nonfinite, "steps": 5}
    with Apart() as apart:
        server = apart.server(tmp_path / "server", parallel={"servers": 2}, **settings)
        apart.shard(**settings)
        apart.worker(**settings)
        said = server.until("failed", "done")[-1]
    if nonfinite == "stop":
        assert "the batch itself holds values that are not finite" in said[1]
    else:
        assert same(said[2], alone(tmp_path / "alone", **settings))


def test_a_server_of_a_part_with_another_optimiser_is_refused_and_a_stop_saves_the_whole(tmp_path: Path) -> None:
    with Apart() as apart:
        server = apart.server(tmp_path / "server", parallel={"servers": 2}, waits=(5,))
        assert "another optim" in apart.shard(optim=Adagrad()).until("refused")[-1][1]
        part, _ = apart.shard(), apart.worker()
        while server.until("step")[-1][1] != 5:
            pass
        for each in (part, server):
            os.kill(each.process.pid, signal.SIGTERM)
        server.tell()
        outcome, _, step = ended(server)
        (checkpoint,) = manifest.checkpoints(tmp_path / "server")
        resumed = small_run(tmp_path / "resumed", parallel=Single(), resume=str(checkpoint), **QUIET)
        resumed.fit()
        resumed.lock.close()
    assert (outcome, step) == ("stopped by SIGTERM", 5)
    assert same(everything(resumed), alone(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"servers": 2, "rule": "easgd"}, "does not go with parallel.rule=easgd"),
        ({"servers": 2, "compensation": 0.1}, r"does not go with parallel.compensation=0\.1"),
    ],
)
def test_options_that_do_not_go_with_several_servers_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Async(role="server", server="127.0.0.1:1", **options).build()


def test_more_servers_than_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"parallel\.servers=99: the network has \d+ tensors that train"):
        small_run(tmp_path, parallel=Async(role="server", server="127.0.0.1:1", servers=99))


@pytest.mark.soak
def test_a_killed_server_of_a_part_starts_again_by_itself(tmp_path: Path, start: Callable[..., Command]) -> None:
    out = tmp_path / "run"
    words = ["train", *QUICK, "parallel=async", "parallel.processes=2", "parallel.servers=2", "parallel.threads=1"]
    command = start(*words, "out=run", "run.steps=2000", "save.every=50 steps")
    command.until_saved(out, 50)
    os.kill(command.processes()[2], signal.SIGKILL)  # the server that leads was started first
    command.until(lambda: len(re.findall("all 2 servers are there", command.told)) == 2, "both servers again")
    assert command.end() == 0, command.told
    assert re.search(r"the server of a part, process \d+ was ended by SIGKILL; it starts again", command.told)
    assert "Traceback" not in command.told
    assert not command.processes()
    assert sorted(taken.step for update in read(out)[1] for taken in update.steps) == list(range(2000))
