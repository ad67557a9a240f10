"""From which checkpoint a run starts, and whether its folder may be gone on with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from torch import nn

from engine import manifest
from engine.distributed.place import place_of
from engine.errors import UsageError
from engine.interfaces import Anatomy, Strategy, Transfer
from engine.pixels import Pixels


def agreed_start(strategy: Strategy, find: Callable[[], Path | None]) -> Path | None:
    """Return the checkpoint that the process which leads finds; None for one that gets all it needs from another."""
    if strategy.follows:
        return None
    found = find() if strategy.leads else None
    shared = strategy.share(str(found) if found else "")
    return Path(shared) if shared else None


def first_weights(
    transfer: Transfer, model: nn.Module, anatomy: Anatomy, pixels: Pixels | None, resumed: Path | None
) -> Sequence[str]:
    """Give a new model its first weights and return lines that say so; to a plan that has none it is nothing.

    resumed: the checkpoint of a run that goes on, whose plan takes up what it knew: the weights may be gone by then.
    """
    if resumed is not None:
        transfer.load(manifest.read(resumed).get("transfer", {}))
        return ()
    return (*transfer.start(model, anatomy), *(transfer.compare(pixels) if pixels else ()))


def starting_point(resume: str, out: Path, tell: Callable[[str], None]) -> Path | None:
    """Return the checkpoint to go on from, or None for a fresh start.

    Raises UsageError for a path without a valid checkpoint, one behind which ``out`` holds newer valid ones, and
    for "auto" where ``out`` holds damaged checkpoints only.
    """
    if resume == "none":
        return None
    if resume == "auto":
        newest = manifest.newest_valid(out, tell)
        if newest is None and manifest.checkpoints(out):
            raise UsageError(f"resume=auto: no checkpoint in out={out} is whole; give another out= to start anew")
        return newest
    start = manifest.locate(Path(resume), tell)
    # Damaged ones do not count: the command line names the checkpoint before them where it was asked for the newest.
    newest = manifest.newest_valid(out, lambda text: None) if within(start, out) else None
    if newest is not None and newest.name > start.name:
        raise UsageError(
            f"resume={resume} is older than {newest.name} in out={out}: give another out= to branch off, or "
            f"resume={out} to go on with the newest"
        )
    return start


def started_again(out: Path, overrides: Sequence[str]) -> bool:
    """Return whether a launcher has started this run's processes again, after one was lost.

    Then they go on with what is in ``out``, whatever ``resume`` says; unless that is of a run with other overrides.
    """
    if place_of(os.environ).restart == 0:
        return False
    for folder in manifest.checkpoints(out):
        with suppress(UsageError):  # a damaged one says nothing
            return sorted(manifest.read(folder)["overrides"]) == sorted(overrides)
    return True


def within(checkpoint: Path, out: Path) -> bool:
    """Return whether a checkpoint's folder is one of the run folder's own."""
    return checkpoint.resolve().parent.parent == out.resolve()
