"""Seeing at the start that all processes are about the same run: the same code, options and data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
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
    "train": "other training data",
    "test": "other test data",
    "model": "another network",
}

OWN = (
    "job", "observe", "resume", "data.root", "data.threads", "data.workers", "data.prefetch", "parallel.threads",
    "parallel.interface",
)  # fmt: skip
"""Options that may be others in each process: whose data it is, its fingerprint tells."""


def require_agreement(options: Options, train: Source, test: Source, model: nn.Module) -> None:
    """Raise UsageError, in every process, if one has other code, options, data or parameters than rank 0."""
    group = current()
    if group.world == 1:
        return
    facts = group.exchange(_facts(options, train, test, model), "what the run is made of")
    for rank, theirs in enumerate(facts):
        for name, value in theirs.items():
            if value != facts[0][name]:
                raise UsageError(f"parallel: rank {rank} has {_difference(name, value, facts[0][name])}: give all "
                                 "processes the same")  # fmt: skip


def _difference(name: str, theirs: Any, firsts: Any) -> str:
    if name != "options":
        return f"{NAMES[name]} than rank 0 ({theirs}, not {firsts})"
    key = min(key for key in {*theirs, *firsts} if theirs.get(key) != firsts.get(key))
    return f"another {key} than rank 0 ({theirs.get(key, 'none')}, not {firsts.get(key, 'none')})"


def _facts(options: Options, train: Source, test: Source, model: nn.Module) -> dict[str, Any]:
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return {
        "code": code(),
        "torch": str(torch.__version__),
        "options": dict(_options(options, "")),
        "train": f"{len(train)} images, {train.fingerprint}",
        "test": f"{len(test)} images, {test.fingerprint}",
        "model": _short(json.dumps(shapes)),
    }


def _options(part: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield what all processes must have alike: each option's value, and each component's kind and place."""
    if path in OWN:
        return
    if dataclasses.is_dataclass(part) or isinstance(part, dict):
        within = part if isinstance(part, dict) else {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        if path:
            yield path, " ".join(part) if isinstance(part, dict) else type(part).__name__
        for name, value in within.items():
            yield from _options(value, f"{path}.{name}" if path else name)
    else:
        yield path, repr(part)


@cache
def code() -> str:
    """Return a short checksum of the engine's Python files, the built-in plugins' included, after its version."""
    from engine import __version__

    content = hashlib.sha256()
    places = find_spec("engine.plugins")
    assert places is not None, "the built-in plugins are installed with the engine"
    for folder in (Path(__file__).parent.parent, *map(Path, places.submodule_search_locations or ())):
        for path in sorted(folder.rglob("*.py")):
            content.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{__version__} {content.hexdigest()[:12]}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
