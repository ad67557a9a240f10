"""The overhead benchmark with counts so small that its figures mean nothing: that it measures what it says."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import overhead
from loops import LR, Work, ours, plain
from loops.ours import engine_loop

from engine.registry import Registry


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def work() -> Work:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10))
    return Work(network, overhead.batches((1, 8, 8), 4), steps=3, skipped=4)


def test_the_feed_times_the_steps_between_two_requests(work: Work) -> None:
    seen = []
    ticks = iter([10.0, 16.0])
    feed = Work(work.network, work.batches, 3, 4, lambda: next(ticks)).feed(["a", "b", "c"])
    for item in feed:
        seen.append(item)
    assert seen == list("abcabcab")  # 4 skipped, 3 timed, and the one whose request ends the timing
    assert len(feed) == 8
    assert feed.seconds == 2.0


def test_the_engine_trains_as_the_loop_written_by_hand(work: Work) -> None:
    times = overhead.compare(
        {overhead.PLAIN: plain.plain, overhead.ACCURACY: plain.with_accuracy, "engine": engine_loop(Registry.load())},
        work,
        rounds=2,
    )
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())
    _, trained = plain.plain(work)
    assert not torch.equal(trained[1].weight, work.network[1].weight)


def test_a_loop_that_trains_otherwise_is_named(work: Work) -> None:
    def idle(work: Work) -> tuple[float, nn.Module]:
        network = work.fresh()
        with torch.no_grad():
            network[1].weight.mul_(1 + LR)
        return 1.0, network

    with pytest.raises(SystemExit, match="idle does not train as"):
        overhead.compare({overhead.PLAIN: plain.plain, "idle": idle}, work, rounds=1)


def test_quick_and_json_go_all_the_way(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loops(registry: Registry) -> dict[str, Any]:
        return {
            overhead.PLAIN: plain.plain,
            overhead.ACCURACY: plain.with_accuracy,
            overhead.ENGINE: engine_loop(registry),
        }

    monkeypatch.setattr(overhead, "loops", loops)
    monkeypatch.setattr(overhead, "calibrated", lambda *settings: work)
    monkeypatch.setattr(overhead, "linear_work", lambda: work)
    overhead.main(["--quick", "--json", "--rounds", "1", "--threads", "1"])
    lines = capsys.readouterr().out.splitlines()
    claims = {claim["name"]: claim for claim in json.loads(lines[-1])["claims"]}
    assert {name: claim["target"] for name, claim in claims.items()} == {
        "1 ms step, engine over plain PyTorch": 1.03,
        "20 ms step, engine over plain PyTorch": 1.01,
        "host time of hooks and bookkeeping per step": 30,
        "bookkeeping counted alone, accuracy included": 30,
    }
    sections = {"guard", "learning rate", "metrics: accuracy", "metrics: sums", "observers", "random seed"}
    assert all(any(line.startswith(section) for line in lines) for section in sections)


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        overhead.main(["--device", "cuda"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("benchmarks/overhead.py: --device cuda: torch 2.")
    assert "(CUDA 13.0) finds no GPU" in line


def test_on_a_gpu_the_hosts_time_is_claimed_and_written(
    work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way of ``--device cuda``, on the CPU: without the loops that need graphs."""
    settled = []
    work = dataclasses.replace(work, settle=lambda: settled.append(1))
    facts = dict.fromkeys(("gpu", "driver", "cuda", "cudnn", "torch", "python", "clocks"), "?")
    monkeypatch.setattr(overhead.device, "no_gpu", lambda: "")
    monkeypatch.setattr(overhead.device, "facts", lambda: facts)
    monkeypatch.setattr(overhead, "gpu_work", lambda: work)
    monkeypatch.setattr(plain, "graphed", plain.plain)
    graphs = []

    def loop(registry: Registry, observers: Any = ours.OBSERVERS, cuda_graph: bool = False) -> Any:
        graphs.append(cuda_graph)
        return engine_loop(registry, observers)

    monkeypatch.setattr(overhead, "engine_loop", loop)
    page = tmp_path / "tables.md"
    overhead.main(["--device", "cuda", "--json", "--rounds", "1", "--write", str(page)])
    claims = json.loads(capsys.readouterr().out.splitlines()[-1])["claims"]
    assert [(claim["name"], claim["target"], claim["unit"]) for claim in claims] == [
        ("host time per step", 50, "us"),
        ("host time per step, by CUDA graphs", 50, "us"),
    ]
    assert graphs == [False, False, True]
    assert len(settled) == 2 * 7, "each turn waits for the device before it looks at the clock"
    text = page.read_text()
    assert text.startswith(
        "# What the engine adds to a step on a GPU: tables\n\nWritten by `python benchmarks/overhead.py"
    )
    assert "| engine, CUDA graph |" in text
