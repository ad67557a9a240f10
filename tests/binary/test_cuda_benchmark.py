"""The GPU's benchmark of packed networks in a small form on the CPU: it compares before it times, and makes claims."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from convolutions.gpu import device
from convolutions.measuring import WALL
from formats import binary_on_gpu
from harness import Report


def test_a_small_form_compares_and_claims(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_on_gpu, "PERCEPTRON", {1: None, 16: 10.0})
    report = Report()
    with device.equal_precision(), torch.inference_mode():
        binary_on_gpu.measure_perceptron(report, WALL, 1, width=64)
        binary_on_gpu.measure_convolutions(report, WALL, 1, scale=64)
    assert [claim.target for claim in report.claims] == [10.0] * 4
    told = capsys.readouterr().out
    assert told.count("\ntorch, float32 by TF32") == told.count("\npacked ") == 5


def test_a_wrong_result_is_not_timed() -> None:
    bits = torch.arange(5, dtype=torch.int32)
    binary_on_gpu.require_close("it", bits, bits)
    with pytest.raises(SystemExit, match="it is not what it is compared with in 2 of 5 numbers"):
        binary_on_gpu.require_close("it", bits, torch.tensor([0, 1, 2, 4, 5], dtype=torch.int32))
    binary_on_gpu.require_close("it", torch.tensor([1000.0]), torch.tensor([1000.001]))
    with pytest.raises(SystemExit, match="1 of 1"):
        binary_on_gpu.require_close("it", torch.tensor([1000.0]), torch.tensor([1000.1]))


def test_what_is_missing_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "missing", lambda: "there is no GPU")
    for given, told in (([], "there is no GPU"), (["--write", str(tmp_path / "no/tables.md")], "no such folder")):
        with pytest.raises(SystemExit) as ended:
            binary_on_gpu.main(given)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("benchmarks/formats/binary_on_gpu.py: ")
        assert line.endswith(told)
