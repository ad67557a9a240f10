"""The profile of a few steps: what is in the trace, and what is left when a run ends before."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from engine import RunFailed
from engine.plugins.observers import Profile
from engine.profiling import named_range
from engine.registry import Registry
from engine.testing import small_run
from engine.testing.small import SmallData

# How torch's plugin for TensorBoard finds traces (torch_tb_profiler/consts.py).
WORKER = re.compile(r"^(.*?)(\.\d+)?\.pt\.trace\.json(?:\.gz)?$")


def traces(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if WORKER.match(path.name))


def ranges(path: Path) -> Counter[str]:
    """Return how often each named range is in a trace."""
    events = json.loads(path.read_text())["traceEvents"]
    return Counter(event["name"] for event in events if event.get("cat") == "user_annotation")


def test_the_recorded_steps_are_in_the_trace_with_their_parts(tmp_path, capsys):
    data = SmallData(threads=1)
    watching = {"profile": Profile(wait=2, warmup=1, record=3)}
    run = small_run(tmp_path / "run", data=data, evaluate_every="never", observe=watching)
    run.fit()
    (path,) = traces(run.out)
    assert WORKER.match(path.name).groups() == ("profile", ".4")
    events = json.loads(path.read_text())["traceEvents"]
    spans = [event for event in events if event.get("cat") == "user_annotation"]
    steps = [event for event in spans if event["name"].startswith("ProfilerStep#")]
    assert len(steps) == 3
    for step in steps:
        inside = Counter(
            event["name"]
            for event in spans
            if event["tid"] == step["tid"] and step["ts"] <= event["ts"] < step["ts"] + step["dur"]
        )
        assert {name: inside[name] for name in ("wait for data", "forward and backward", "update")} == {
            "wait for data": 1, "forward and backward": 1, "update": 1
        }  # fmt: skip
    convolutions = [event for event in events if event["name"] == "aten::conv2d"]
    assert len(convolutions) == 3
    assert f"profile: steps 4 to 6 in {path}: open it in https://ui.perfetto.dev" in capsys.readouterr().err


def test_the_loaders_threads_are_in_the_trace(tmp_path):
    # Steps are prepared ahead, so 8 recorded steps of one that is prepared 1 ahead see at least 6 copies.
    data = SmallData(threads=1, prefetch=1)
    run = small_run(tmp_path / "run", data=data, observe={"profile": Profile(wait=0, warmup=1, record=8)})
    run.fit()
    (path,) = traces(run.out)
    spans = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("cat") == "user_annotation"]
    training = {event["tid"] for event in spans if event["name"] == "update"}
    copying = Counter(event["tid"] for event in spans if event["name"] == "copy to device")
    copying = {thread: count for thread, count in copying.items() if thread not in training}
    assert len(training) == 1
    assert sum(copying.values()) >= 6


@pytest.mark.parametrize(
    ("profile", "steps", "said"),
    [
        (Profile(wait=8, warmup=2, record=5), 0, "no trace, as the run ended before step 11"),
        (Profile(wait=10, warmup=2, record=5), 0, "no trace, as the run ended before step 13"),
        (Profile(wait=7, warmup=2, record=5), 1, "step 10 in "),
        (Profile(wait=4, warmup=1, record=20), 5, "steps 6 to 10 in "),
    ],
)
def test_a_run_that_ends_before_leaves_the_whole_steps_there_are(tmp_path, capsys, profile, steps, said):
    run = small_run(tmp_path / "run", observe={"profile": profile})
    assert run.fit() == "done"
    assert sum(ranges(path)["update"] for path in traces(run.out)) == steps
    assert f"profile: {said}" in capsys.readouterr().err
    assert not torch.autograd.profiler._is_profiler_enabled


def test_an_exception_ends_the_profile_too(tmp_path, capsys):
    run = small_run(tmp_path / "run", observe={"profile": Profile(wait=0, warmup=1, record=8)})
    log = run.log

    def fail() -> None:
        log()
        if run.position.step == 6:
            raise RuntimeError("pulled the plug")

    run.log = fail
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run.fit()
    (path,) = traces(run.out)
    assert ranges(path)["update"] == 5
    assert "profile: steps 2 to 6 in" in capsys.readouterr().err
    assert not torch.autograd.profiler._is_profiler_enabled


def test_a_resumed_run_names_its_own_steps(make_run, capsys):
    run = make_run(step=3)
    run.play(Profile(wait=0, warmup=1, record=1).build(), until=6)
    assert [path.name for path in traces(run.out)] == ["profile.5.pt.trace.json"]
    assert "profile: step 5 in" in capsys.readouterr().err


def test_no_trace_is_written_over(make_run, capsys):
    for _ in range(3):
        run = make_run(step=3)
        run.play(Profile(wait=0, warmup=1, record=1).build(), until=6)
    assert [path.name for path in traces(run.out)] == [
        "profile-2.5.pt.trace.json",
        "profile-3.5.pt.trace.json",
        "profile.5.pt.trace.json",
    ]
    assert capsys.readouterr().err.count("profile-3.5") == 1


def test_several_processes_write_files_of_their_own(make_run):
    run = make_run()
    run.strategy.rank, run.strategy.world = 1, 2
    run.play(Profile(wait=0, warmup=1, record=1).build())
    (path,) = traces(run.out)
    assert path.name == "profile-rank1.2.pt.trace.json"
    assert WORKER.match(path.name).groups() == ("profile-rank1", ".2")


def test_writing_the_file_is_no_time_of_training(make_run, monkeypatch):
    paused = []
    run = make_run()
    pause = run.clock.paused

    def noted():
        paused.append(run.position.step)
        return pause()

    monkeypatch.setattr(run.clock, "paused", noted)
    run.play(Profile(wait=0, warmup=1, record=2).build())
    assert paused == [3]


def test_a_folder_that_vanished_is_named(make_run):
    run = make_run()
    run.out.rmdir()
    with pytest.raises(RunFailed, match=r"profile.2.pt.trace.json cannot be written \(No such file"):
        run.play(Profile(wait=0, warmup=1, record=2).build())


def test_ranges_are_torchs_own_while_it_profiles_and_one_empty_context_otherwise():
    assert named_range("a") is named_range("b")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled, named_range("mine"):
        pass
    assert "mine" in {event.key for event in profiled.key_averages()}


def test_it_is_chosen_by_its_name():
    assert Registry.load().entry("observe", "profile").options is Profile
