"""Kernels under a precision whose forward passes compute in other numbers than the weights are kept in."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from installed import choices
from timed import network
from torch import nn

from engine import Model, Precision, Session, interfaces, score
from engine.composed import composed_layers
from engine.convolutions import survey
from engine.devices import prepare_device
from engine.plugins.kernels import Auto, Im2col
from engine.registry import Registry
from engine.testing import small_run
from engine.testing.small import SmallPrecision

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from small_run import build_run

SHAPE = (4, 3, 12, 10)
REFUSED = "it computes in float32 and float64, not bfloat16"


@dataclass
class BrainFloat(Precision):
    """bfloat16 in convolutions and matrix products, float32 weights, as in docs/plugins.md."""

    def build(self) -> interfaces.Precision:
        class Autocast(interfaces.Precision):
            dtype = torch.float32

            def forward(self, samples: Any = None) -> Any:
                return torch.autocast("cpu", torch.bfloat16)

        return Autocast()


@dataclass
class Watched(Model):
    """A convolution, and a list of the types of what it returned."""

    def __post_init__(self) -> None:
        self.seen: list[torch.dtype] = []

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        model = nn.Sequential(nn.Conv2d(inputs[0], 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model[0].register_forward_hook(lambda layer, images, output: self.seen.append(output.dtype))
        return model.append(nn.Linear(4, outputs))


@dataclass
class Asked:
    """Keeps the types that were measured."""

    def __post_init__(self) -> None:
        self.types: list[torch.dtype] = []

    def __call__(self, spec, direction, kernels, *settings):
        self.types.append(spec.dtype)
        return {kernel.name: 1.0 if kernel.name == "implicit" else 2.0 for kernel in kernels}


def test_the_survey_notes_what_a_layer_computes_in():
    model = network()
    assert {layer.spec.dtype for layer in survey(model, SHAPE)} == {torch.float32}
    assert {layer.spec.dtype for layer in survey(network().double(), SHAPE)} == {torch.float64}
    with torch.autocast("cpu", torch.bfloat16):
        assert {layer.spec.dtype for layer in survey(model, SHAPE)} == {torch.bfloat16}
    assert not any(layer._forward_hooks for layer in model.modules())


@pytest.mark.parametrize("precision", [BrainFloat, SmallPrecision])
@pytest.mark.parametrize("kernels", [Auto, Im2col])
def test_a_run_plans_for_the_numbers_that_its_forward_passes_compute_in(tmp_path, monkeypatch, precision, kernels):
    asked, model = Asked(), Watched()
    monkeypatch.setattr("engine.plugins.kernels.auto.measure", asked)
    options = kernels(cache="none") if kernels is Auto else kernels()
    monkeypatch.setattr(options, "build", lambda installed, build=options.build: build(choices()))
    run = small_run(tmp_path, kernels=options, model=model, precision=precision(), steps=2)
    model.seen.clear()
    assert run.fit() == "done"
    if precision is BrainFloat:
        assert asked.types == []
        assert "_conv_forward" not in vars(run.model[0])
        assert REFUSED in run.tables[0]
        assert set(model.seen) == {torch.bfloat16}
    else:
        assert set(asked.types) == ({torch.float32} if kernels is Auto else set())
        assert run.model[0]._conv_forward.kernels.startswith("implicit/")
        assert set(model.seen) == {torch.float32}
    if kernels is Auto:
        facts = json.loads(json.dumps(run.kernels.plan()))["layers"]["0"][0]
        assert facts[-1] == ("torch.bfloat16" if precision is BrainFloat else "torch.float32")


def test_an_evaluation_and_a_look_at_the_layers_plan_for_them_too(tmp_path):
    registry = Registry.load()
    run = build_run(registry, tmp_path / "run", run={"steps": 1})
    run.fit()
    run.lock.close()
    for precision, dtype in ((BrainFloat(), torch.bfloat16), (run.options.precision, torch.float32)):
        options = dataclasses.replace(run.options, precision=precision, kernels=Im2col())
        session = Session(options, registry, tmp_path / "unused")
        layers, _ = composed_layers(session)
        assert {layer.spec.dtype for layer in layers} == {dtype}
        told: list[str] = []
        score(session, tmp_path / "run", told.append)
        assert any(REFUSED in text for text in told) is (dtype == torch.bfloat16), told


def test_the_current_gpu_is_the_one_that_was_asked_for(monkeypatch, tmp_path):
    """A ConvSpec says "cuda" and not which; so do generators, and synchronisation."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    options = small_run(tmp_path).options
    for device in ("cuda:1", "cuda", "cpu"):
        options.run.device = device
        assert prepare_device(options) == torch.device(device)
    assert chosen == [torch.device("cuda:1")]
