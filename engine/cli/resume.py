"""Composes a run again from its checkpoint: the saved overrides go under the ones just typed. No torch."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from engine import manifest
from engine.cli import guard
from engine.cli.folders import RUNS
from engine.errors import UsageError
from engine.options import GROUPS
from engine.registry import Registry

NEVER_SAVED = ("job", "out", "resume")


def say(text: str) -> None:
    """Tell the user something about the start of a run, on stderr."""
    print(f"engine: {text}", file=sys.stderr)


def restored(words: Sequence[str], job: str, registry: Registry, sweep: bool) -> list[str]:
    """Return the overrides with those of the checkpoint that ``resume`` or ``checkpoint`` names put under them.

    ``resume`` then is "none" or a checkpoint's folder, and ``out`` that checkpoint's run unless it was given.
    In a sweep ``resume=auto`` is left as it is: each job looks into its own folder (``newest_in``). Raises
    UsageError for a path that holds no valid checkpoint.
    """
    given = _values(words)
    resume = given.get("resume", "none")
    if resume != "none" and sweep:
        if resume != "auto":
            raise UsageError(f"resume={resume} goes on with one run; drop -m, or use resume=auto with out=")
        if "out" not in given:
            raise UsageError("resume=auto in a sweep looks into its folder; name it with out=")
        return list(words)
    if resume != "none":
        return _resumed(words, given)
    fields = {f.name for f in dataclasses.fields(registry.entry("job", job).options)}
    checkpoint = given.get("job.checkpoint") if "checkpoint" in fields else None
    if checkpoint and Path(checkpoint).is_dir():
        saved = manifest.read(manifest.locate(Path(checkpoint), say))["overrides"]
        return merged(saved, words)
    return list(words)


def _resumed(words: Sequence[str], given: dict[str, str]) -> list[str]:
    rest = [word for word in words if _key(word) != "resume"]
    if given["resume"] != "auto":
        found: Path | None = manifest.locate(Path(given["resume"]), say)
    elif "out" in given:
        found = manifest.newest_valid(Path(given["out"]), say)
        where = given["out"]
    else:
        found = _newest_like(task(rest))
        where = f"{RUNS}/ with these overrides"
    if found is None:
        say(f"resume=auto: no valid checkpoint in {where}; starting afresh")
        return rest
    say(f"resuming from {found}")
    out = [] if "out" in given else [f"out={_quoted(found.resolve().parent.parent)}"]
    return [*merged(manifest.read(found)["overrides"], rest), *out, f"resume={_quoted(found)}"]


def newest_in(out: Path, overrides: Sequence[str]) -> str:
    """Return what ``resume`` means for a sweep's job in ``out``: its newest valid checkpoint, or "none".

    Raises UsageError if the checkpoint is of a run with other overrides.
    """
    found = manifest.newest_valid(out, say)
    if found is None:
        say(f"resume=auto: no valid checkpoint in {out}; starting afresh")
        return "none"
    saved = manifest.read(found)["overrides"]
    if sorted(saved) != sorted(overrides):
        raise UsageError(f"resume=auto: {out} was run with {' '.join(saved) or 'no overrides'}; give another out=")
    say(f"resuming from {found}")
    return str(found)


def _newest_like(overrides: Sequence[str]) -> Path | None:
    """Return the newest valid checkpoint of the runs below ``runs/`` that were given the same overrides."""
    folders = [path.parent for depth in ("*/*", "*/*/*") for path in RUNS.glob(f"{depth}/{manifest.FOLDER}")]
    newest: Callable[[Path], float] = lambda run: max(
        (path.stat().st_mtime for path in manifest.checkpoints(run)), default=0.0
    )
    for run in sorted(folders, key=newest, reverse=True):
        found = manifest.newest_valid(run, say)
        if found and sorted(manifest.read(found)["overrides"]) == sorted(overrides):
            return found
    return None


def task(words: Sequence[str]) -> list[str]:
    """Return the overrides that make the run what it is: all but the job's, ``out`` and ``resume``."""
    return [word for word in words if _key(word) not in NEVER_SAVED and not _key(word).startswith(("job.", "hydra"))]


def merged(saved: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return ``saved`` under ``words``: the same key is the later one's, and so are the options of a new choice.

    ``model=lenet`` over ``model=cnn model.width=32`` drops the width, which LeNet may not have.
    """
    keys = {_key(word) for word in words}
    chosen = {key for key in keys if key in GROUPS and not any(word in saved for word in words if _key(word) == key)}
    kept = [word for word in saved if _key(word) not in keys and _key(word).partition(".")[0] not in chosen]
    return [*kept, *words]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _values(words: Sequence[str]) -> dict[str, str]:
    """Return the value of each override that has a plain one, quotes removed."""
    parsed = guard.parse(words)
    return {o.key_or_group: str(o.value()) for o in parsed if not o.is_sweep_override() and o.value() is not None}


def _quoted(path: Path) -> str:
    return QuotedString(str(path), Quote.single).with_quotes()
