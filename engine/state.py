"""What a checkpoint holds of a run, and putting it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine import checkpoint
from engine.errors import UsageError
from engine.loader import Position
from engine.pieces import Piece
from engine.stored import fill, shape_of
from engine.weights import load_pieces

if TYPE_CHECKING:
    from engine.parts import Parts

MODEL, OPTIMIZER, AVERAGE, ENGINE, PARALLEL = (
    f"{name}.safetensors" for name in ("model", "optimizer", "average", "engine", "parallel")
)  # fmt: skip

BEFORE = {"torch.float64": "Float64"}  # the policies of checkpoints that do not name theirs, by type, beside Float32


def capture(
    run: Parts, observed: dict[str, Any]
) -> tuple[dict[str, Mapping[str, Tensor | Piece]], dict[str, Any], float | None]:
    """Return a checkpoint's tensors by file, its manifest's facts, and this step's evaluation if there was one.

    They are the same whatever the strategy and the number of processes: of a sharded tensor, this process's piece.
    """
    from engine import __version__

    pieces, common = run.strategy.pieces, run.strategy.common
    model = pieces(common(run.model.state_dict()))  # first: what others hold of the optimiser's state comes with it
    optimizer, numbers = checkpoint.optimizer_state(run.optimizer)
    optimizer = dict(common(optimizer))
    files: dict[str, Mapping[str, Tensor | Piece]] = {
        MODEL: model,
        OPTIMIZER: checkpoint.optimizer_pieces(run.optimizer, optimizer, pieces, run.strategy.leads),
        ENGINE: {
            "updates": run.rates.updates,
            "skipped": run.guard.skipped,
            "metrics": run.strategy.sum(run.metrics.sums.clone()),
            **{f"precision/{name}": value for name, value in run.precision.state().items()},
        },
    }
    if run.average:
        files[AVERAGE] = pieces(common(run.average.state()))
    if own := run.strategy.tensors(own_of(run)):
        files[PARALLEL] = own
    facts = {
        "engine": __version__,
        "torch": str(torch.__version__),
        "optimizer": type(run.optimizer).__name__,
        "dtype": str(run.precision.dtype),
        "precision": type(run.precision).__name__,
        "parallel": {"strategy": type(run.strategy).__name__, "state": run.strategy.state()},
        "overrides": list(run.overrides),
        "choices": run.choices,
        "position": dataclasses.asdict(run.position),
        "stages": [stage.steps for stage in run.stages],
        "best": dataclasses.asdict(run.best),
        "data": {
            "fingerprint": run.source.fingerprint,
            "images": len(run.source),
            "classes": list(run.source.classes),
        },
        "parameters": {name: [str(piece.values.dtype), list(piece.shape)] for name, piece in model.items()},
        "optimizer_numbers": numbers,
        "kernels": run.kernels.plan(),
        "transfer": run.transfer.state(),
        "pixels": dataclasses.asdict(run.pixels) if run.pixels else {},
        "observers": observed,
    }
    return files, facts, run.best.latest if run.best.latest_step == run.position.step else None


def restore(run: Parts, folder: Path) -> None:
    """Assemble the stage that a checkpoint is in and put the run into its state, every byte verified first.

    Raises UsageError, naming what differs, if the checkpoint is damaged or of another model, optimiser or
    data set.
    """
    facts, files = checkpoint.load(folder)
    require_same_run(run, facts, folder)
    run.position = Position(**facts["position"])
    run.kernels.load(facts.get("kernels", {}))
    run.enter_stage(run)
    if facts["optimizer"] != type(run.optimizer).__name__:
        raise UsageError(
            f"{folder} was trained with {facts['optimizer']}, this run with {type(run.optimizer).__name__}: choose the "
            "same optim, or start a new run"
        )
    pieces = run.strategy.pieces
    load_pieces(pieces(run.model.state_dict()), files[MODEL], str(folder))
    checkpoint.load_optimizer_state(run.optimizer, files[OPTIMIZER], facts["optimizer_numbers"], pieces)
    if run.average:
        # A run that had no average yet starts it from the weights it goes on with.
        average = files.get(AVERAGE, files[MODEL])
        load_pieces(pieces(run.average.state()), {name: average[name] for name in run.average.state()}, str(folder))
    load_counters(run, files[ENGINE])
    load_own(run, facts.get("parallel", {}), files.get(PARALLEL, {}))
    run.rates.look_up()
    run.guard.keep()
    if run.best.name == facts["best"]["name"]:
        run.best = type(run.best)(**facts["best"])
    run.saved_step = run.position.step
    run.hooks.on_load_checkpoint(run=run, state=facts["observers"])


def require_same_run(run: Parts, facts: Mapping[str, Any], folder: Path) -> None:
    """Raise UsageError if a checkpoint is of other data, other numbers, or beyond this run's end."""
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
    position = Position(**facts["position"])
    if position.step > run.steps:
        raise UsageError(
            f"{folder} is after step {position.step}, this run ends at step {run.steps}: raise run.epochs or run.steps"
        )
    if position.stage >= len(run.stages):
        raise UsageError(
            f"{folder} is in stage {position.stage + 1}; this run has {len(run.stages)}: keep its "
            "transfer, or start a new run with transfer.weights"
        )
    stages = [stage.steps for stage in run.stages]
    theirs = facts.get("stages", stages)
    if stages != theirs and max(len(stages), len(theirs)) > 1:  # one stage may become longer
        raise UsageError(
            f"{folder} is of a run whose stages have {theirs} steps, here they have {stages}: give "
            f"run.steps={sum(theirs)} and the same stages; to train on, start a new run with transfer.weights"
        )


def load_counters(run: Parts, stored: Mapping[str, Tensor]) -> None:
    """Take up the sums and counts of all processes, and the numeric policy's state."""
    run.rates.updates.copy_(stored["updates"])
    run.guard.skipped.copy_(stored["skipped"])
    if run.strategy.leads and run.metrics.sums.shape == stored["metrics"].shape:
        run.metrics.sums.copy_(stored["metrics"])  # of all processes together, so one goes on with them
    run.precision.load({n.removeprefix("precision/"): v for n, v in stored.items() if n.startswith("precision/")})


def load_own(run: Parts, facts: Mapping[str, Any], stored: Mapping[str, Tensor]) -> None:
    """Take up what the strategy keeps, if it is the same one, as far as it is of as many processes."""
    if facts.get("strategy") != type(run.strategy).__name__:
        return
    run.strategy.load(facts["state"])
    for name, piece in run.strategy.tensors(own_of(run)).items():
        if name in stored and shape_of(stored, name) == piece.shape:
            fill(piece, stored, name)


def own_of(run: Parts) -> dict[str, Tensor]:
    """Return what a process has for itself where processes train apart: its counts, and its average of weights."""
    average = run.average.state() if run.average else {}
    counts = {"updates": run.rates.updates, "skipped": run.guard.skipped}
    return counts | {f"average/{name}": values for name, values in average.items()}
