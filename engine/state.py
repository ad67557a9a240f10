"""What a checkpoint holds of a run, and putting it back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine import checkpoint
from engine.errors import UsageError
from engine.loader import Position
from engine.weights import load_state

if TYPE_CHECKING:
    from engine.parts import Parts

MODEL, OPTIMIZER, AVERAGE, ENGINE = (
    f"{name}.safetensors" for name in ("model", "optimizer", "average", "engine")
)  # fmt: skip

BEFORE = {"torch.float64": "Float64"}  # the policies of checkpoints that do not name theirs, by type, beside Float32


def capture(run: Parts, observed: dict[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], float | None]:
    """Return a checkpoint's tensors by file, its manifest's facts, and this step's evaluation if there was one."""
    from engine import __version__

    optimizer, numbers = checkpoint.optimizer_state(run.optimizer)
    model = run.model.state_dict()
    files = {
        MODEL: model,
        OPTIMIZER: optimizer,
        ENGINE: {
            "updates": run.rates.updates,
            "skipped": run.guard.skipped,
            "metrics": run.metrics.sums,
            **{f"precision/{name}": value for name, value in run.precision.state().items()},
        },
    }
    if run.average:
        files[AVERAGE] = run.average.state()
    facts = {
        "engine": __version__,
        "torch": str(torch.__version__),
        "optimizer": type(run.optimizer).__name__,
        "dtype": str(run.precision.dtype),
        "precision": type(run.precision).__name__,
        "overrides": list(run.overrides),
        "choices": run.choices,
        "position": dataclasses.asdict(run.position),
        "best": dataclasses.asdict(run.best),
        "data": {
            "fingerprint": run.source.fingerprint,
            "images": len(run.source),
            "classes": list(run.source.classes),
        },
        "parameters": {name: [str(value.dtype), list(value.shape)] for name, value in model.items()},
        "optimizer_numbers": numbers,
        "kernels": run.kernels.plan(),
        "observers": observed,
    }
    return files, facts, run.best.latest if run.best.latest_step == run.position.step else None


def restore(run: Parts, folder: Path) -> None:
    """Assemble the stage that a checkpoint is in and put the run into its state, every byte verified first.

    Raises UsageError, naming what differs, if the checkpoint is damaged or of another model, optimiser or
    data set.
    """
    facts, files = checkpoint.load(folder)
    if facts["data"]["fingerprint"] != run.source.fingerprint:
        raise UsageError(
            f"{folder} was trained on other data ({facts['data']['images']} images, fingerprint "
            f"{facts['data']['fingerprint']}; here {len(run.source)}, {run.source.fingerprint}): start a new run"
        )
    if facts["dtype"] != str(run.precision.dtype):
        raise UsageError(
            f"{folder} was trained in {facts['dtype']}, this run computes in {run.precision.dtype}: choose the same "
            "precision, or start a new run"
        )
    ours, theirs = type(run.precision).__name__, facts.get("precision", BEFORE.get(facts["dtype"], "Float32"))
    if ours != theirs:
        raise UsageError(
            f"{folder} was trained with {theirs}, this run with {ours}: choose the same precision, or start a new run"
        )
    run.position = Position(**facts["position"])
    if run.position.step > run.steps:
        raise UsageError(
            f"{folder} is after step {run.position.step}, this run ends at step {run.steps}: raise run.epochs or "
            "run.steps"
        )
    if run.position.stage >= len(run.stages):
        raise UsageError(f"{folder} is in stage {run.position.stage + 1}; this run has {len(run.stages)}")
    run.kernels.load(facts.get("kernels", {}))
    run.enter_stage(run)
    if facts["optimizer"] != type(run.optimizer).__name__:
        raise UsageError(
            f"{folder} was trained with {facts['optimizer']}, this run with {type(run.optimizer).__name__}: choose the "
            "same optim, or start a new run"
        )
    load_state(run.model, files[MODEL], str(folder))
    checkpoint.load_optimizer_state(run.optimizer, files[OPTIMIZER], facts["optimizer_numbers"])
    if run.average:
        # A run that had no average yet starts it from the weights it goes on with.
        run.average.load(files.get(AVERAGE, files[MODEL]))
    engine = files[ENGINE]
    run.rates.updates.copy_(engine["updates"])
    run.rates.look_up()
    run.guard.skipped.copy_(engine["skipped"])
    run.guard.keep()
    if run.metrics.sums.shape == engine["metrics"].shape:
        run.metrics.sums.copy_(engine["metrics"])
    run.precision.load({n.removeprefix("precision/"): v for n, v in engine.items() if n.startswith("precision/")})
    if run.best.name == facts["best"]["name"]:
        run.best = type(run.best)(**facts["best"])
    run.saved_step = run.position.step
    run.hooks.on_load_checkpoint(run=run, state=facts["observers"])
