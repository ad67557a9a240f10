"""The benchmark of local response normalization, in small: both sides compute the same, and memory is counted once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import lrn as benchmark


@pytest.fixture(autouse=True)
def _as_before():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def test_the_sides_are_one_layer() -> None:
    images = torch.randn(2, 8, 5, 5)
    sides = [benchmark.normalization(side) for side in (benchmark.KERNEL, benchmark.TORCH)]
    assert [layer.fused for layer in sides] == [True, False]
    assert_close(*(layer(images) for layer in sides))


def test_what_alexnet_keeps_differs_by_torchs_three_tensors() -> None:
    kernel, others = (benchmark.kept(lambda side=side: benchmark.normalization(side)) for side in ("kernel", "torch"))
    more = 4 * 256 * (55**2 * (3 * 96 + 4) + 27**2 * (3 * 256 + 4))
    assert others - kernel == pytest.approx(more / 2**30)
    without = 4 * 256 * (55**2 * 96 + 27**2 * 256)  # what the pooling keeps beside what the ReLU does
    assert kernel - benchmark.kept(None) == pytest.approx(without / 2**30)


def test_it_reports_its_claims(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "SHAPES", ((1, 8, 5, 5),))
    benchmark.main(["--quick", "--json"])
    claims = json.loads(capsys.readouterr().out.splitlines()[-1])["claims"]
    assert len(claims) == 2 + 1
    assert benchmark.resident("VmHWM") >= benchmark.resident("VmRSS") > 0
