"""Small runs that are compared by what they save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from engine import checkpoint, manifest
from engine.options import Parallel
from engine.testing import small_run

FILES = ("model.safetensors", "optimizer.safetensors", "average.safetensors")
COMMON = {"batch": 8, "accumulate": 2, "clip": 0.5, "log_every": 1, "ema": 0.9}


def train(out: str, steps: int, parallel: Parallel, settings: dict[str, Any], start: str = "none") -> None:
    """Make a run of so many steps, or go on with one."""
    run = small_run(Path(out), steps=steps, parallel=parallel, resume=start, **COMMON | settings)
    run.fit()
    run.lock.close()


def tensors(out: Path) -> dict[str, Tensor]:
    """Return all that the newest checkpoint holds of model, optimiser and average."""
    newest = manifest.newest_valid(out, print)
    assert newest is not None
    _, files = checkpoint.load(newest)
    return {f"{name}/{key}": files[name][key] for name in FILES for key in files[name]}
