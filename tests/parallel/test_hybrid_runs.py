"""Whole runs under the hybrid, what they save, and what they send."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import hybrid_cases
import hybrid_runs

from engine.plugins.parallel import Hybrid, Single
from engine.testing import together


def split(scheme: str) -> Hybrid:
    return Hybrid(scheme=scheme, layers=["fc*"])


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in one)


def test_a_run_goes_on_with_any_number_of_processes_and_scheme(tmp_path: Path) -> None:
    """Four processes by rows, then two by columns, then one: as one process that was never disturbed."""
    undisturbed = hybrid_runs.trained(str(tmp_path / "alone"), Single(), 9)
    together(4, hybrid_runs.trained, str(tmp_path / "run"), split("d"), 3)
    (saved,) = (tmp_path / "run/checkpoints").glob("*/model-00003-of-00004.safetensors")
    assert "fc6.weight" in load_file(saved)
    together(2, hybrid_runs.trained, str(tmp_path / "run"), split("a"), 6)
    went_on = hybrid_runs.trained(str(tmp_path / "run"), Single(), 9)
    assert close(went_on, undisturbed)


def test_bytes_are_those_of_the_formula() -> None:
    for told, wire, formula in chain(*together(2, hybrid_runs.of_every_scheme)):
        assert told == pytest.approx(formula, rel=1e-6)
        assert wire == pytest.approx(2 * formula, rel=0.01)


@pytest.mark.parametrize("numbers", ["bfloat16", "float16"])
def test_few_bits_are_sent_where_they_are_computed_with(numbers: str) -> None:
    for errors in together(2, hybrid_cases.in_few_bits, numbers):
        for scheme, (error, share) in errors.items():
            assert error <= 0.05, scheme
            assert share == (0.5 if numbers == "bfloat16" else 1), scheme


def test_a_second_stage_goes_on_with_the_parts(tmp_path: Path) -> None:
    alone = hybrid_runs.in_two_stages(str(tmp_path / "alone"), Single())
    for scheme in "cd":
        for weights in together(
            2, hybrid_runs.in_two_stages, str(tmp_path / scheme), Hybrid(scheme=scheme, layers=["fc*"])
        ):
            assert close(weights, alone)
