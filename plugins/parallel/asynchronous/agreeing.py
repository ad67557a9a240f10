"""Seeing that a worker that joins is about the same run as the server."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from engine.distributed.agreement import NAMES, code
from engine.loader import Loader
from engine.randomness import Key

OURS = {"step": "another run.batch or run.accumulate", "seed": "another run.seed", "optimizer": "another optim"}
WORDS = NAMES | OURS


def facts_of(model: nn.Module, loader: Loader, key: Key) -> dict[str, str]:
    """Return what server and workers must have in common, in words or as checksums."""
    shapes = {name: [str(value.dtype), list(value.shape)] for name, value in model.state_dict().items()}
    return {
        "code": code(),
        "torch": str(torch.__version__),
        "train": f"{len(loader.source)} images, {loader.source.fingerprint}",
        "model": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:12],
        "step": f"{loader.count} samples a step",
        "seed": str(key.value),
    }


def optimizer_fact(optimizer: torch.optim.Optimizer) -> str:
    """Return what servers must have in common of their optimiser: all but the rate, which the one that leads tells."""
    own = {"params", "names", "lr", "initial_lr"}
    groups = [{key: str(value) for key, value in group.items() if key not in own} for group in optimizer.param_groups]
    return f"{type(optimizer).__name__} {json.dumps(groups, sort_keys=True)}"


def difference(ours: dict[str, str], theirs: dict[str, str]) -> str:
    """Return, in words, the first thing in which a worker's facts are not the server's; "" if there is none."""
    for name, value in ours.items():
        if theirs.get(name) != value:
            return f"it has {WORDS[name]} than the server ({theirs.get(name)}, not {value})"
    return ""
