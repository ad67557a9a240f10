"""Runs of several processes: stopped together, and gone on with by any other number of them."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine import Model, Optim, manifest
from engine.distributed import current
from engine.options import SaveOptions
from engine.plugins.parallel import Data
from engine.plugins.precision import Float64
from engine.testing import small_run, together

STEPS, BATCH = 6, 10  # two steps make an epoch of 20 images


@dataclass
class Plain(Model):
    """A network whose outputs depend on nothing but the image: no BatchNorm, no dropout."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, outputs))


def train(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train as one of the processes; return how it ended and the samples that this process saw in each step."""
    given = {"model": Plain(), "precision": Float64(), "parallel": Data(), "batch": BATCH, "steps": STEPS}
    run = small_run(out, **given | {"save": SaveOptions(every="never")} | settings)
    seen: dict[int, list[int]] = {}
    begin = run.begin

    def noting(batch: Any, index: int) -> None:
        seen.setdefault(run.position.step, []).extend(batch.samples.tolist())
        begin(batch, index)

    run.begin = noting
    outcome = run.fit()
    return {"outcome": outcome, "step": run.position.step, "seen": seen, "position": str(run.position)}


def weights_in(out: Path) -> dict[str, torch.Tensor]:
    """Return what the newest checkpoint of a run has of the model and the optimiser."""
    folder = manifest.checkpoints(out)[0]
    return {n: v for name in ("model", "optimizer") for n, v in load_file(folder / f"{name}.safetensors").items()}


@pytest.mark.parametrize("worlds", [(1, 4), pytest.param((3, 2), marks=pytest.mark.soak)])
def test_any_number_of_processes_goes_on_with_the_same_samples(tmp_path, worlds):
    """With a share of 2 or 3 samples each; in float64 the sums' order alone makes a difference."""
    whole = train(tmp_path / "whole", {})
    first = together(2, train, tmp_path / "parts", {"steps": 3})
    for world in worlds:
        out = tmp_path / f"on-{world}"
        start = str(manifest.checkpoints(tmp_path / "parts")[0])
        parts = together(world, train, out, {"resume": start}) if world > 1 else [train(out, {"resume": start})]
        for step in range(STEPS):
            by_process = [part["seen"][step] for part in (first if step < 3 else parts)]
            assert max(map(len, by_process)) - min(map(len, by_process)) <= 1
            assert sorted(chain(*by_process)) == sorted(whole["seen"][step]), "each once, in the step it belongs to"
        assert {part["position"] for part in parts} == {whole["position"]}
        expected = weights_in(tmp_path / "whole")
        for name, value in weights_in(out).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14, msg=name)


def test_a_run_of_two_is_evaluated_by_one(engine, undisturbed):
    _, out, _ = undisturbed
    code, told, error = engine("evaluate", f"checkpoint={out}")
    assert code == 0, error
    assert "accuracy" in told
    code, _, error = engine("export", f"checkpoint={out}", "format=state_dict", "out=plain.safetensors")
    assert code == 0, error
    stored = load_file(manifest.checkpoints(out)[0] / "model.safetensors")
    plain = load_file("plain.safetensors")
    assert plain.keys() == stored.keys()
    assert all(torch.equal(plain[name], value) for name, value in stored.items())


def stop_in_one(out: Path, why: str) -> dict[str, Any]:
    """Train until only rank 1 has a reason to stop; return how it ended here."""
    settings: dict[str, Any] = {"max_time": "1h", "save": SaveOptions(every="1 steps", background=why == "background")}
    run = small_run(out, parallel=Data(), steps=50, **settings)
    train_step = run.train

    def training(step: Any) -> None:
        train_step(step)
        if current().rank == 1 and run.position.step == 3:
            if why == "max_time":
                run.deadline = 0.0
            else:
                os.kill(os.getpid(), signal.SIGTERM)

    run.train = training
    return {"outcome": run.fit(), "step": run.position.step}


@pytest.mark.parametrize(
    ("why", "outcome"),
    [
        ("background", "stopped by SIGTERM"),
        pytest.param("SIGTERM", "stopped by SIGTERM", marks=pytest.mark.soak),
        pytest.param("max_time", "max_time", marks=pytest.mark.soak),
    ],
)
def test_all_stop_one_step_after_the_request_of_one(tmp_path, why, outcome):
    ended = together(2, stop_in_one, tmp_path / "run", why)
    assert ended == [{"outcome": outcome, "step": 4}] * 2
    newest = manifest.checkpoints(tmp_path / "run")[0]
    assert manifest.verify(newest)["step"] == 4


def lose_patience(out: Path) -> dict[str, Any]:
    run = small_run(out, parallel=Data(), steps=50, patience=2, evaluate_every="1 steps", optim=Still())
    return {"outcome": run.fit(), "step": run.position.step}


@dataclass
class Still(Optim):
    """Changes nothing, so that nothing gets better."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make the optimiser."""
        return torch.optim.SGD(groups, lr=0.0, fused=True)


@pytest.mark.soak
def test_all_lose_patience_together(tmp_path):
    first, second = together(2, lose_patience, tmp_path / "run")
    assert first == second
    assert first["outcome"] == "early stop"
    assert first["step"] < 50
