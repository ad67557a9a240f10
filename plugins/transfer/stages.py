"""Stages as they are written: head:0.4, last_2:0.3, all:0.3."""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine import UsageError
from engine.anatomy import Anatomy, WeightLayer
from engine.interfaces import Stage

STAGE = re.compile(r"(head|all|last_[1-9]\d*):(\d*\.?\d+)(?::([1-9]\d*))?")
Share = tuple[str, float, int | None]
"""What trains, for which share of the run, and the evaluations without improvement that end it early."""


def parse_stages(texts: Sequence[str], patience: int | None) -> list[Share]:
    """Return what stages are, from WHAT:SHARE or WHAT:SHARE:PATIENCE; ``patience`` is that of those without one.

    Raises UsageError, naming the entry, for one that is written otherwise or named twice, and for shares that do not
    add up to 1.
    """
    stages = [_parsed(text, patience) for text in texts]
    names = [name for name, _, _ in stages]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"transfer.stages: {twice} is there twice; give each stage once")
    if abs((total := sum(share for _, share, _ in stages)) - 1) > 1e-6:
        raise UsageError(f"transfer.stages: the shares add up to {total:g}; they must be 1 together")
    return stages


def _parsed(text: str, patience: int | None) -> Share:
    found = STAGE.fullmatch(text.strip())
    if not found or float(found[2]) == 0:
        raise UsageError(
            f"transfer.stages: '{text}' is no stage; write head:0.4, last_2:0.3 or all:0.3, with the share of the run, "
            "and :3 behind it to end after 3 evaluations without improvement"
        )
    return found[1], float(found[2]), int(found[3]) if found[3] else patience


def steps_of(shares: Sequence[Share], steps: int) -> list[Stage]:
    """Return the stages of a run of so many steps; each ends at the step nearest to the share that is over then."""
    stages, begun, over = [], 0, 0.0
    for number, (name, share, patience) in enumerate(shares, 1):
        over += share
        end = steps if number == len(shares) else round(over * steps)
        stages.append(Stage(name, end - begun, patience))
        begun = end
    return stages


def of_head(anatomy: Anatomy, layer: WeightLayer) -> bool:
    """Return whether a layer is the head's, or an auxiliary head's."""
    return anatomy.is_head(layer) or layer.name in anatomy.auxiliary


def depths(anatomy: Anatomy) -> dict[str, int]:
    """Return how many layers away from the head each layer is, by name: heads 0, the last layer before them 1."""
    before = [layer.name for layer in anatomy.layers if not of_head(anatomy, layer)]
    away = {name: number for number, name in enumerate(reversed(before), 1)}
    return {layer.name: away.get(layer.name, 0) for layer in anatomy.layers}


def training(what: str, anatomy: Anatomy) -> set[str]:
    """Return the names of the layers that train in a stage of that name. Raises UsageError for more than there are."""
    away = depths(anatomy)
    if what == "all":
        return set(away)
    count = 1 if what == "head" else int(what.removeprefix("last_"))
    if count > (most := max(away.values()) + 1):
        raise UsageError(
            f"transfer: the model has {most} layers, not {count}, to train the last of: name fewer, or all"
        )
    return {name for name, distance in away.items() if distance < count}
