"""Weights to start from, wherever they are: a run, a checkpoint, a file, a URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from engine import checkpoint, manifest
from engine.fetching import fetch, is_url, verified
from engine.state import AVERAGE, MODEL
from engine.weights import read_state

SUM = "transfer.sha256"


@dataclass(frozen=True)
class Given:
    """Somebody's weights.

    origin: what the user called them. state: parameters and buffers by name; ordered: whether in the order in which
    the layers were made. facts: a checkpoint's manifest. remarks: lines about where they were found. unused: names of
    those that the model has no place for, once ``take`` has been at work.
    """

    origin: str
    state: Mapping[str, Tensor]
    ordered: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    unused: set[str] = field(default_factory=set)

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes that the weights tell apart; none where they do not say."""
        card = self.facts.get("preprocessing") or {}
        return card.get("classes") or self.facts.get("data", {}).get("classes", ())


def read_weights(weights: str, sha256: str) -> Given:
    """Return the weights that a path or URL means: of a checkpoint, the averaged ones if it kept an average.

    Raises UsageError naming what is missing, damaged, or not what its checksum says.
    """
    path = fetch(weights, sha256, option=SUM) if is_url(weights) else verified(Path(weights).expanduser(), sha256, SUM)
    if not path.is_dir():
        # A safetensors file sorts what it keeps.
        return Given(weights, read_state(path), ordered=path.suffix != ".safetensors")
    remarks: list[str] = []
    folder = manifest.locate(path, remarks.append)
    facts, files = checkpoint.load(folder)
    averaged = " (averaged weights)" if AVERAGE in files else ""
    remarks.append(f"{folder} is after step {facts['step']}{averaged}")
    state = {**files[MODEL], **files.get(AVERAGE, {})}
    in_order = {name: state[name] for name in facts["parameters"] if name in state}  # a file sorts
    return Given(weights, in_order | state, ordered=True, facts=facts, remarks=remarks)
