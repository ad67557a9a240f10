"""Kernels from the command line: a short training with its table, and mistakes answered in a line."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from engine import Model, Session, manifest, score
from engine.ops import instruction_set
from engine.registry import Registry

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from small_run import build_run

QUICK = ["data.size=8", "run.steps=2", "run.batch=32"]


def kernels_told(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("kernels: ")]


def test_training_tells_which_kernels_compute(engine):
    code, out, told = engine("train", *QUICK, "kernels=naive", "kernels.layers=['conv[12]:im2col']", "out=run")
    assert code == 0, told
    lines = kernels_told(out + told)
    assert "kernels: conv1, conv2: implicit (kernels.layers)" in lines, lines
    assert "kernels: conv3: naive (chosen)" in lines, lines


def test_auto_measures_and_a_resumed_run_computes_alike(engine, tmp_path, own_cache):
    code, out, told = engine("train", *QUICK, "kernels=auto", "out=run")
    assert code == 0, told
    assert any("forward, ms (torch's own)" in line for line in kernels_told(out + told))
    (remembered,) = (own_cache / "conv-engine").glob("kernels-*.json")
    assert json.loads(remembered.read_text())["entries"]
    checkpoint = manifest.checkpoints(tmp_path / "run")[0]
    assert "kernels" in json.loads((checkpoint / manifest.NAME).read_text())
    remembered.unlink()
    code, out, told = engine("train", *QUICK, "run.steps=3", "kernels=auto", "out=run", "resume=auto")
    assert code == 0, told
    assert not remembered.exists(), "nothing was measured again"
    assert any(line.endswith("(as planned before)") for line in kernels_told(out + told))


def test_an_evaluation_tells_its_kernels_in_aligned_columns(engine):
    assert engine("train", *QUICK, "out=run")[0] == 0
    code, _, told = engine("evaluate", "checkpoint=run", "data.size=8", "kernels=auto")
    assert code == 0, told
    lines = told.splitlines()
    (head,) = (number for number, line in enumerate(lines) if line.startswith("engine: kernels: layer  forward"))
    column = lines[head].index("forward")
    for line in lines[head + 1 : head + 4]:
        assert line.startswith("engine: conv")
        assert line[column - 2 : column] == "  "
        assert line[column] != " ", told


@dataclass
class Flat(Model):
    """One linear layer."""

    def build(self, inputs, outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(inputs), outputs))


def test_an_evaluation_without_convolutions_tells_of_none(tmp_path):
    registry = Registry.load()
    run = build_run(registry, tmp_path / "run", model=Flat(), run={"steps": 1})
    run.fit()
    run.lock.close()
    told: list[str] = []
    score(Session(run.options, registry, tmp_path / "unused"), tmp_path / "run", told.append)
    assert [text.partition(",")[0] for text in told] == [f"evaluating {manifest.checkpoints(tmp_path / 'run')[0]}"]


@pytest.mark.parametrize("cache", ["~nosuchuser/x", "taken"])
def test_a_cache_that_cannot_be_used_is_answered_in_a_line(engine, tmp_path, cache):
    (tmp_path / "taken").write_text("")
    code, _, told = engine("train", *QUICK, "kernels=auto", f"kernels.cache='{cache}'", "out=run")
    assert code == 2
    assert "give a folder that can be used, or none" in told
    assert told.startswith(f"engine: kernels.cache={cache}: ")
    assert len(told.strip().splitlines()) == 1, told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["kernels.layers=['conv9:naive']"], "kernels.layers: no convolution is called 'conv9'"),
        (["kernels.layers=['conv1:niave']"], "did you mean 'naive'"),
        (["kernels.layers=['naive']"], "must be LAYER:KERNEL"),
        (["kernels=winogard"], "did you mean 'winograd'"),
        (["kernels=winograd", "kernels.tile=3"], "kernels.tile=3"),
        (["kernels=auto", "kernels.error_budget=0"], "kernels.error_budget=0"),
    ],
)
def test_a_mistake_is_answered_in_a_line(engine, tmp_path, words, expected):
    code, _, told = engine("train", *QUICK, *words, "out=run")
    assert code == 2
    assert expected in told
    assert len(told.strip().splitlines()) == 1, told
    assert not manifest.checkpoints(tmp_path / "run")


def test_an_unknown_instruction_set_is_answered_in_a_line(engine, monkeypatch):
    monkeypatch.setenv("ENGINE_ISA", "nonsense")
    instruction_set.cache_clear()
    try:
        code, _, told = engine("train", *QUICK, "kernels=naive", "out=run")
    finally:
        instruction_set.cache_clear()
    assert code == 2
    assert "ENGINE_ISA=nonsense: no such instruction set" in told
    assert len(told.strip().splitlines()) == 1, told
