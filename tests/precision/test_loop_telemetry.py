"""What floating-point policies tell of a run, and the benchmark of their steps in a small form."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from floating_runs import run_of
from small_run import Watch

from engine import hookimpl
from engine.plugins.precision import Bfloat16, Bfloat16SR, Float16

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from formats import step_time
from harness import Report
from plots import precision as plot


@dataclass
class Logs(Watch):
    """Keeps what is logged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.logs: list[dict[str, float]] = []

    @hookimpl
    def on_log(self, scalars: dict[str, float]) -> None:
        self.logs.append(scalars)


def logged(folder: Path, precision: Any) -> list[dict[str, float]]:
    logs = Logs()
    settings = {"steps": 6, "log_every": 2, "evaluate_every": "never"}
    run_of(folder, precision, observe={"logs": logs}, schedule="constant", run=settings).fit()
    return [{n: v for n, v in each.items() if n.startswith(("precision/", "train/skipped"))} for each in logs.logs]


def test_float16_tells_its_scale_and_what_rounding_does(tmp_path):
    told = logged(tmp_path / "run", Float16(init_scale=4096.0, growth_interval=3, emulate="always"))
    assert [each["precision/loss_scale"] for each in told] == [4096.0, 8192.0, 16384.0]
    assert [each["precision/growth_tracker"] for each in told] == [2, 1, 0]
    assert [each["train/skipped"] for each in told] == [0, 0, 0]
    # A number of 11 bits is off by at most 2^-12 of itself, 72 dB below, and by less on average.
    for role in ("weight", "activation", "activation_gradient", "weight_gradient"):
        assert all(72 < each[f"precision/sqnr_db/{role}"] < 80 for each in told), role


def test_what_overflowed_is_not_told_as_free_of_noise(tmp_path):
    told = logged(tmp_path / "run", Float16(init_scale=2.0**31, emulate="always"))
    assert told[0]["train/skipped"] == 2
    assert told[0]["precision/sqnr_db/weight_gradient"] < 0 < told[0]["precision/sqnr_db/weight"]


def test_a_loss_of_bfloat16_outputs_is_computed_in_float32(tmp_path):
    """The squared hinge, which autocast leaves in the type of what it is given."""
    watch = Watch()
    settings = {"steps": 3, "evaluate_every": "never"}
    run = run_of(tmp_path / "run", Bfloat16(), observe={"watch": watch}, loss="squared_hinge", run=settings)
    run.fit()
    assert {loss.dtype for loss in watch.losses} == {torch.float32}
    assert any(float(loss) != float(loss.bfloat16()) for loss in watch.losses)


def test_bfloat16_weights_tell_of_updates_that_vanished(tmp_path):
    for rounding in ("stochastic", "nearest", "kahan"):
        told = logged(tmp_path / rounding, Bfloat16SR(rounding))
        assert [list(each) for each in told] == [["precision/vanished_updates"]] * 3
        shares = [each["precision/vanished_updates"] for each in told]
        assert all(0 < share < 1 for share in shares) if rounding != "kahan" else max(shares) < 0.05


def test_autocast_has_nothing_to_tell(tmp_path):
    assert logged(tmp_path / "run", Bfloat16()) == [{}] * 3


@pytest.mark.parametrize("name", list(step_time.NETWORKS))
def test_the_benchmark_in_a_small_form_trains_every_side_and_claims(name, capsys):
    report = Report()
    step_time.measure_network(report, name, 1, width=4, batch=2)
    (claim,) = report.claims
    assert claim.target == step_time.NETWORKS[name][1]
    assert math.isfinite(claim.value)
    out = capsys.readouterr().out
    assert all(side in out for side in step_time.SIDES)


@pytest.mark.parametrize("name", list(step_time.NETWORKS))
def test_the_benchmark_trains_the_networks_that_it_names(name):
    model = step_time.NETWORKS[name][0](64)
    filters = [m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert filters == ([64, 64, 128, 128, 256, 256] if "VGG" in name else [64] * 7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, step_time.CLASSES)


def test_the_plot_without_matplotlib_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        plot.main([str(tmp_path)])
    told = capsys.readouterr().err
    assert told == "benchmarks/plots/precision.py: matplotlib is needed: pip install -r requirements-bench.txt\n"
