"""The harness's arithmetic against numbers worked out by hand, with a clock that is told the time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from harness import Report, Spread, Times, arguments, interleave, machine


class Clock:
    """Moves only when a side works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_sides_take_turns_in_an_order_drawn_every_round_and_the_warm_up_does_not_count() -> None:
    clock, calls = Clock(), []

    def side(name: str, seconds: float):
        def work() -> None:
            calls.append(name)
            clock.now += seconds

        return work

    sides = {"a": side("a", 1.0), "b": side("b", 2.0), "c": side("c", 4.0)}
    times = interleave(sides, 60, warmup=1, clock=clock)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 61
    assert set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}  # so nobody always follows the same one
    assert times == {"a": [1.0] * 60, "b": [2.0] * 60, "c": [4.0] * 60}


def test_a_side_that_times_itself_is_believed() -> None:
    own = iter([9.0, 0.5, 0.25])
    times = interleave({"own": lambda: next(own)}, 2, warmup=1, clock=Clock())
    assert times == {"own": [0.5, 0.25]}


def test_ratios_are_taken_within_rounds() -> None:
    """A machine that is ten times as slow in one round changes no ratio; the ratio of medians would be 3 / 10."""
    times = Times({"fast": [1.0, 10.0, 3.0], "slow": [2.0, 20.0, 15.0]})
    assert times.ratio("slow", "fast") == Spread(2.0, 2.0, 3.5)  # of 2, 2, 5
    assert times.difference("slow", "fast") == Spread(5.5, 10.0, 11.0)  # of 1, 10, 12
    assert times.spread("fast") == Spread(2.0, 3.0, 6.5)


def test_quartiles_lie_between_neighbours_and_one_value_is_all_three() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0]) == Spread(1.75, 2.5, 3.25)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert Spread(0.001, 0.0025, 0.0041).text(1e3, 1) == "2.5 (1.0 .. 4.1)"


def claims(report: Report) -> None:
    report.claim("ratio", 1.02, 1.03, "x")
    report.claim("on the edge", 30.0, 30, "us")
    report.claim("too slow", 1.011, 1.01, "x")
    report.claim("accuracy", 97.4, 97.5, "%", at_least=True)
    report.claim("speed", 97.5, 97.5, "%", at_least=True)


def test_json_is_the_last_line_and_names_no_machine(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(as_json=True)
    report.table("times", ["loop", "ms"], [["plain", "1.0"]])
    claims(report)
    report.close()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(last) == ["claims", "machine"]
    assert last["claims"][0] == {"name": "ratio", "value": 1.02, "target": 1.03, "unit": "x", "met": True}
    assert [claim["met"] for claim in last["claims"]] == [True, True, False, False, True]
    assert {"cpu", "cores", "threads", "instruction_set", "torch", "python"} <= set(last["machine"])
    assert machine()["cores"] >= 1


def test_tables_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.table("times", ["loop", "ms"], [["plain", "1.0"], ["engine, no observers", "12.5"]])
    claims(report)
    report.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:6] == [
        "times",
        "loop                  ms",
        "--------------------  ----",
        "plain                 1.0",
        "engine, no observers  12.5",
    ]
    [late] = [line for line in lines if line.startswith("too slow")]
    assert late.split() == ["too", "slow", "1.011", "1.01", "x", "NO"]


def test_every_benchmark_has_the_same_command_line() -> None:
    given = arguments("words", ["--quick", "--json", "--threads", "3"])
    assert (given.quick, given.json, given.threads, given.rounds) == (True, True, 3, None)
    assert not arguments("words", []).quick
