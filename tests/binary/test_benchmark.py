"""The benchmark of packed networks in a small form: it compares bits before it times, and states its claims."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from formats import binary
from harness import Report


def test_a_small_form_compares_and_claims(capsys):
    report = Report()
    threads = torch.get_num_threads()
    binary.measure_perceptron(report, 1, width=64)
    binary.measure_convolutions(report, 1, scale=16)
    assert torch.get_num_threads() == threads
    targets = [claim.target for claim in report.claims]
    assert targets == [40, 18, 10, 10, 10]
    assert "times the packed one's" in capsys.readouterr().out


def test_the_float_sides_compute_what_the_trained_layers_do():
    model = binary.perceptron(width=32)
    pixels = binary.random_pixels(5).float()
    with torch.no_grad():
        assert torch.equal(binary.plain(model, torch.float32)(pixels), model(pixels))
    norms = [m.weight for m in model if isinstance(m, torch.nn.BatchNorm1d)]
    assert any((weight < 0).any() for weight in norms)
    assert any((weight > 0).any() for weight in norms)
