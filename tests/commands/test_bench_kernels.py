"""``engine bench kernels``: its figures against worked-out ones, its tables against its JSON; no time is asserted."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine import ConvSpec, measuring
from engine.convolutions import Layer
from engine.measuring import Spread, gflop, race, ratios
from engine.plugins.jobs import bench_kernels, contest

LENET = ["model=lenet", "inputs=[1,28,28]", "run.batch=2", "seconds=0.001"]
FLOP = {"conv1": 2 * 2 * (20 * 24 * 24) * (1 * 5 * 5), "conv2": 2 * 2 * (50 * 8 * 8) * (20 * 5 * 5)}


@pytest.fixture
def engine(engine):
    """Return a function that runs ``engine bench kernels`` in this process, in tmp_path: exit code, stdout, stderr."""
    return lambda *words: engine("bench", "kernels", *words)


def told(path: Path = Path("figures.json")) -> dict:
    return json.loads(path.read_text())


def test_every_kernel_on_every_layer_and_direction_as_table_and_as_json(engine):
    code, out, err = engine(*LENET, "json=figures.json")
    assert code == 0, err
    found = told()
    assert found["images"] == [2, 1, 28, 28]
    asked = {(row["direction"], *row["layers"]) for row in found["rows"]}
    assert asked == {
        ("forward", "conv1"), ("forward", "conv2"), ("backward_input", "conv2"),  # nobody needs the digits' gradient
        ("backward_weight", "conv1"), ("backward_weight", "conv2"),
    }  # fmt: skip
    for row in found["rows"]:
        assert row["gflop"] == pytest.approx(FLOP[row["layers"][0]] * 1e-9)
        assert 0 < row["ms_low"] <= row["ms"] <= row["ms_high"]
        assert row["gflop_per_s"] * row["ms"] == pytest.approx(row["gflop"] * 1e3)
        assert row["turns"] >= 1
        shown = f"{row['kernel']} {row['ms']:.3f} ({row['ms_low']:.3f} .. {row['ms_high']:.3f}) {row['turns']}"
        assert shown in " ".join(out.split())
    assert len(lines_of_kernels(out)) == len(found["rows"])
    assert {"native", "implicit", "im2col", "fft"} <= {row["kernel"] for row in found["rows"]}
    assert "naive" not in {row["kernel"] for row in found["rows"]}
    for key in ("processor", "threads", "instruction set", "huge pages", "torch"):
        assert f"{key} {found['machine'][key]}" in out


def lines_of_kernels(out: str) -> list[str]:
    """Return the lines of the three tables that hold times: "* native  0.1 (0.1 .. 0.1) ...", not the totals'."""
    tables = out.partition("all layers")[0]
    return [line for line in tables.splitlines() if " .. " in line]


def test_the_fastest_and_the_totals_follow_from_the_times(engine):
    assert engine(*LENET, "json=figures.json")[0] == 0
    found, shapes = told(), defaultdict(dict)
    for row in found["rows"]:
        shapes[row["direction"], *row["layers"]][row["kernel"]] = row["ms"]
    best = {key: min(ms for kernel, ms in times.items() if kernel != contest.NCHW) for key, times in shapes.items()}
    for row in found["rows"]:
        key = (row["direction"], *row["layers"])
        assert row["fastest"] == (row["ms"] == best[key] and row["kernel"] != contest.NCHW)
    totals = {total["name"]: total for total in found["totals"]}
    native = sum(times["native"] for times in shapes.values())
    assert totals.pop("the fastest of each")["milliseconds"] == pytest.approx(sum(best.values()))
    for name, total in totals.items():
        assert total["milliseconds"] == pytest.approx(sum(t.get(name, t["native"]) for t in shapes.values()))
        assert total["over_native"] == pytest.approx(total["milliseconds"] / native)
        assert (total["taken"], total["of"]) == (sum(name in times for times in shapes.values()), 5)


def test_what_a_kernel_refuses_is_said_and_native_counts_in_its_place(engine):
    code, out, _ = engine(*LENET, "compare=[winograd4]", "json=figures.json", "run.channels_last=true")
    assert code == 0
    assert out.count("winograd4 refuses conv") == 3  # a line for each direction
    found = told()
    assert {row["kernel"] for row in found["rows"]} == {"native"}  # no NCHW row: the model has none
    reasons = {(r["direction"], r["kernel"], *r["layers"]) for r in found["refusals"] if r["reason"]}
    assert len(reasons) == 5
    assert [total["name"] for total in found["totals"]] == ["native", "the fastest of each"]


def test_layers_of_one_shape_are_measured_once_and_count_often(engine):
    """ResNet-20 at 8x8: 19 convolutions of 6 shapes (He et al. 2015); the first needs no gradient of the images."""
    words = ["model=resnet20", "inputs=[3,8,8]", "run.batch=1", "compare=[implicit]", "seconds=0.001"]
    assert engine(*words, "json=figures.json")[0] == 0
    native = [row for row in told()["rows"] if row["kernel"] == "native"]
    assert [row["direction"] for row in native].count("forward") == 6
    assert sorted(len(row["layers"]) for row in native if row["direction"] == "forward") == [1, 1, 1, 5, 5, 6]
    assert {total["of"] for total in told()["totals"]} == {19 + 18 + 19}


def test_an_evaluation_has_forward_alone_with_prepared_weights(engine, monkeypatch):
    prepared = []
    monkeypatch.setattr(
        contest, "call", lambda *given: (prepared.append(given[3]), measuring.call(*given))[1], raising=True
    )
    code, out, _ = engine("model=cnn", "inputs=[1,8,8]", "run.batch=1", "training=false", "compare=[winograd2]")
    assert code == 0
    assert "forward: the output" in out
    assert "backward" not in out
    assert set(prepared) == {True}


def test_the_composed_data_gives_the_images(engine):
    code, _, err = engine("data.size=16", "run.batch=5", "compare=[implicit]", "seconds=0.001", "json=figures.json")
    assert code == 0, err
    assert told()["images"] == [5, 1, 16, 16]
    code, _, _ = engine(
        "data.size=24", "run.batch=5", "compare=[implicit]", "seconds=0.001", "training=false", "json=figures.json"
    )
    assert (code, told()["images"]) == (0, [5, 1, 24, 24])


def test_no_data_is_opened_for_given_images(engine):
    words = ["data=idx", "data.root=nowhere", "model=cnn", "run.batch=1", "compare=[implicit]", "seconds=0.001"]
    assert engine(*words)[0] == 2
    assert engine(*words, "inputs=[1,8,8]", "classes=3")[0] == 0


BAD = {
    "no such kernel": (["compare=[winogrd4]"], r"compare: no kernel is called 'winogrd4'; did you mean 'winograd4'?"),
    "two numbers": (["inputs=[3,8]"], "inputs=[3,8]: give channels, height and width"),
    "no pixels": (["inputs=[3,0,8]"], "inputs=[3,0,8]: give channels, height and width"),
    "too small": (["inputs=[1,4,4]", "model=lenet"], "needs images of at least 13x13"),
    "no time": (["seconds=0"], "seconds=0.0: must be above 0"),
    "file in no folder": (["json=nowhere/x.json"], "json=nowhere/x.json"),
    "folder for a file": (["json=."], "json=.: it is a folder"),
    "no such device": (["inputs=[1,8,8]", "run.device=cuda:99"], "run.device=cuda:99"),
}


@pytest.mark.parametrize(("words", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_answered_in_one_line(engine, tmp_path, words, expected):
    code, out, err = engine(*words)
    assert (code, out) == (2, "")
    assert expected in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_convolutions_is_refused(engine, monkeypatch):
    monkeypatch.setattr(bench_kernels, "composed_layers", lambda *_: ([], (1, 1, 8, 8)))
    code, out, err = engine()
    assert (code, out) == (2, "")
    assert "no convolution" in err


def test_what_cannot_be_planned_is_said(engine, monkeypatch):
    lazy = Layer("late", nn.Conv2d(1, 1, 1), remark="its shape is not known yet")
    monkeypatch.setattr(bench_kernels, "composed_layers", lambda *_: ([lazy], (1, 1, 8, 8)))
    code, out, _ = engine("json=figures.json")
    assert code == 0
    assert "not measured: late: its shape is not known yet" in out
    assert told()["rows"] == told()["totals"] == []


SPECS = [
    ConvSpec(2, 4, 9, 7, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    ConvSpec(1, 8, 5, 5, 8, (3, 3), padding=(1, 1), groups=8),
]


@pytest.mark.parametrize("spec", SPECS)
def test_gflop_is_what_torchs_own_counter_counts(spec):
    with FlopCounterMode(display=False) as counter:
        nn.functional.conv2d(
            torch.ones(spec.input_shape), torch.ones(spec.weight_shape), None,
            spec.stride, spec.padding, spec.dilation, spec.groups,
        )  # fmt: skip
    assert gflop(spec) == pytest.approx(counter.get_total_flops() * 1e-9)


class Work:
    """Calls that move a clock of their own instead of taking time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.turns = 0.0, []
        monkeypatch.setattr(measuring.time, "perf_counter", lambda: self.now)

    def of(self, name: str, *milliseconds: float):
        waiting = list(milliseconds)

        def work() -> torch.Tensor:
            self.turns.append(name)
            self.now += 1e-3 * (waiting.pop(0) if len(waiting) > 1 else waiting[0])
            return torch.empty(0)

        return work


def test_calls_take_turns_and_the_hopeless_leave(monkeypatch):
    work = Work(monkeypatch)
    times = race({"a": work.of("a", 1), "b": work.of("b", 1.4), "c": work.of("c", 1.6)}, seconds=1, rounds=2)
    turns = "".join(work.turns)
    assert turns[:3] == "abc"  # untimed
    assert sorted(turns[3:6]) == ["a", "b", "c"]  # a trial
    assert [sorted(turns[i : i + 2]) for i in (6, 8)] == [["a", "b"]] * 2  # two rounds without c
    assert len(turns) == 10
    assert {name: pytest.approx(t) for name, t in times.items()} == {"a": [1, 1], "b": [1.4, 1.4], "c": [1.6]}


def test_every_order_of_turns_occurs(monkeypatch):
    work = Work(monkeypatch)
    race({"a": work.of("a", 1), "b": work.of("b", 1)}, seconds=1, rounds=20)
    turns = "".join(work.turns[2:])
    assert {turns[i : i + 2] for i in range(0, len(turns), 2)} == {"ab", "ba"}  # nobody always follows the other


def test_one_disturbed_trial_of_three_ends_nothing(monkeypatch):
    work = Work(monkeypatch)
    calls = {"a": work.of("a", 1), "b": work.of("b", 1, 50, 1), "c": work.of("c", 9)}
    times = race(calls, seconds=1, rounds=2, stays=("c",), trials=3)
    assert {name: pytest.approx(t) for name, t in times.items()} == {"a": [1, 1], "b": [1, 1], "c": [9, 9]}


def test_time_ends_trials_and_rounds(monkeypatch):
    work = Work(monkeypatch)
    assert race({"a": work.of("a", 600)}, seconds=1, rounds=100, trials=100)["a"] == [pytest.approx(600)] * 2


def test_spread_rate_and_ratios():
    assert Spread.of([4.0]) == Spread(4, 4, 4)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(2, 3, 4)
    assert Spread(2, 4, 8).rate(8) == Spread(1, 2, 4)
    assert ratios([2, 20, 15], over=[1, 10, 3]) == Spread(2, 2, 3.5)  # of 2, 2, 5: round by round
    assert ratios([6], over=[1, 2, 3]).median == 3
    assert math.isfinite(ratios([1e-3], over=[1e3]).low)
