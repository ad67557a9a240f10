"""Seeing at the start that all processes are about the same run: the same code, options and data."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.distributed.group import current
from engine.errors import UsageError
from engine.interfaces import Source
from engine.options import Options

NAMES = {
    "code": "another version of the engine's or a plugin's code",
    "torch": "another torch",
    "options": "other options",
    "train": "other training data",
    "test": "other test data",
    "model": "another network",
}


def require_agreement(options: Options, train: Source, test: Source, model: nn.Module) -> None:
    """Raise UsageError, in every process, if one has other code, options, data or parameters than rank 0."""
    group = current()
    if group.world == 1:
        return
    facts = group.exchange(_facts(options, train, test, model), "what the run is made of")
    for rank, theirs in enumerate(facts):
        for name, value in theirs.items():
            if value != facts[0][name]:
                raise UsageError(
                    f"parallel: rank {rank} has {NAMES[name]} than rank 0 ({value}, not {facts[0][name]}): give all "
                    "processes the same"
                )


def _facts(options: Options, train: Source, test: Source, model: nn.Module) -> dict[str, Any]:
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return {
        "code": code(),
        "torch": str(torch.__version__),
        "options": _short(repr(options.run) + repr({g: repr(getattr(options, g)) for g in ("model", "optim", "loss")})),
        "train": f"{len(train)} images, {train.fingerprint}",
        "test": f"{len(test)} images, {test.fingerprint}",
        "model": _short(json.dumps(shapes)),
    }


@cache
def code() -> str:
    """Return a short checksum of the engine's Python files, the built-in plugins' included, after its version."""
    from engine import __version__

    content = hashlib.sha256()
    places = find_spec("engine.plugins")
    assert places is not None, "the built-in plugins are installed with the engine"
    for folder in (Path(__file__).parent.parent, *map(Path, places.submodule_search_locations or ())):
        for path in sorted(folder.rglob("*.py")):
            content.update(path.relative_to(folder).as_posix().encode() + b"\\0" + path.read_bytes())
    return f"{__version__} {content.hexdigest()[:12]}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
