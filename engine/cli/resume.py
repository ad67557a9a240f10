"""Composes a run again from its checkpoint: the saved overrides go under the ones just typed. No torch."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from engine import manifest
from engine.cli.folders import RUNS
from engine.cli.overrides import alternatives, key_of, parse, without_implied
from engine.cli.presets import picks_of
from engine.distributed.place import place_of
from engine.errors import UsageError
from engine.folder import owner_of
from engine.options import GROUPS, Job
from engine.registry import Registry

NEVER_SAVED = ("job", "out", "resume")
EXPLAINS = "explain"  # shows what resuming would compose, and goes on with nothing
LENGTHS = {"run.epochs", "run.steps"}  # one decides and makes the other void


def say(text: str) -> None:
    """Tell the user something about the start of a run, on stderr; of several processes the first does."""
    if place_of(os.environ).rank == 0:
        print(f"engine: {text}", file=sys.stderr)


def restored(words: Sequence[str], job: str, registry: Registry, sweep: bool) -> list[str]:
    """Return the overrides with those of the checkpoint that ``resume`` or ``checkpoint`` names put under them.

    ``resume`` then is "none", a checkpoint's folder, or "auto" where there is none yet; ``out`` is that checkpoint's
    run unless it was given. In a sweep ``resume=auto`` is left as it is: each job looks into its own folder
    (``newest_in``). Raises UsageError for a path that holds no valid checkpoint, for a folder that another process
    uses, and for a job that continues no run.
    """
    given = _values(words)
    resume = given.get("resume", "none")
    fields = {f.name for f in dataclasses.fields(registry.entry("job", job).options)}
    if not resume:
        raise UsageError("resume= is empty: give auto, none, or a run or checkpoint folder")
    if resume != "none" and not keeps_output(job, registry) and job != EXPLAINS:
        todo = "name what it reads with checkpoint=" if "checkpoint" in fields else "leave it out"
        raise UsageError(f"resume={resume}: the job '{job}' goes on with no run; {todo}")
    if resume != "none" and sweep:
        if resume != "auto":
            raise UsageError(f"resume={resume} goes on with one run; drop -m, or use resume=auto with out=")
        if "out" not in given:
            raise UsageError("resume=auto in a sweep looks into its folder; name it with out=")
        return list(words)
    if resume != "none":
        if job != EXPLAINS:
            _require_unused(_folder_of(given))
        return _resumed(words, given)
    return merged(_saved_with(words), words) if "checkpoint" in fields else list(words)


def keeps_output(job: str, registry: Registry) -> bool:
    """Say whether a job owns its run folder, and so may go on with a run."""
    kind = registry.entry("job", job).options
    return issubclass(kind, Job) and kind.keeps_output


def _folder_of(given: dict[str, str]) -> Path | None:
    """Return the run folder that a command will use, as far as it says so."""
    if "out" in given or given["resume"] == "auto":
        return Path(given["out"]) if "out" in given else None
    path = Path(given["resume"])
    return path.resolve().parent.parent if (path / manifest.NAME).is_file() else path


def _require_unused(out: Path | None) -> None:
    """Raise UsageError if another process uses ``out``: its checkpoints come and go while we would read them."""
    owner = owner_of(out) if out else None
    if owner:
        raise UsageError(f"out={out} is in use by process {owner}: wait for it, or choose another out=")


def _saved_with(words: Sequence[str]) -> list[str]:
    """Return the overrides of the engine's checkpoints that ``job.checkpoint`` names; none for foreign files."""
    named = [o for o in parse(words) if o.key_or_group == "job.checkpoint"]
    paths = [Path(str(value)) for override in named for value in alternatives(override) if value]
    saved = [manifest.read(manifest.locate(path, say))["overrides"] for path in paths if path.is_dir()]
    if any(sorted(overrides) != sorted(saved[0]) for overrides in saved):
        raise UsageError("checkpoint=: a sweep takes checkpoints of one configuration; name the others one at a time")
    return saved[0] if saved else []


def _resumed(words: Sequence[str], given: dict[str, str]) -> list[str]:
    rest = [word for word in words if key_of(word) != "resume"]
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
        return [*rest, "resume=auto"]  # a run killed before its first checkpoint may be started again in its folder
    say(f"resuming from {found}")
    out = [] if "out" in given else [f"out={quoted(found.resolve().parent.parent)}"]
    return [*merged(manifest.read(found)["overrides"], rest), *out, f"resume={quoted(found)}"]


def newest_in(out: Path, overrides: Sequence[str]) -> str:
    """Return what ``resume`` means for a sweep's job in ``out``: its newest valid checkpoint, or "auto" without one.

    Raises UsageError if the checkpoint is of a run with other overrides.
    """
    _require_unused(out)
    found = manifest.newest_valid(out, say)
    if found is None:
        say(f"resume=auto: no valid checkpoint in {out}; starting afresh")
        return "auto"
    saved = manifest.read(found)["overrides"]
    if sorted(saved) != sorted(overrides):
        raise UsageError(f"resume=auto: {out} was run with {' '.join(saved) or 'no overrides'}; give another out=")
    say(f"resuming from {found}")
    return str(found)


def _newest_like(overrides: Sequence[str]) -> Path | None:
    """Return the newest valid checkpoint of the runs below ``runs/`` that were given the same overrides."""
    # A sweep's runs are one level deeper.
    runs = [path.parent for depth in ("*/*", "*/*/*") for path in RUNS.glob(f"{depth}/{manifest.FOLDER}")]
    alike = [run for run in runs if _overrides_of(run) == sorted(overrides)]
    alike.sort(key=lambda run: manifest.checkpoints(run)[0].stat().st_mtime, reverse=True)
    return next((found for run in alike if (found := manifest.newest_valid(run, say))), None)


def _overrides_of(run: Path) -> list[str] | None:
    """Return the sorted overrides of a run, from any checkpoint whose manifest is intact; None without one."""
    for folder in manifest.checkpoints(run):
        try:
            return sorted(manifest.read(folder)["overrides"])
        except UsageError:  # another checkpoint of the run may do; if the run is chosen, this one is named then
            continue
    return None


def task(words: Sequence[str]) -> list[str]:
    """Return the overrides that make the run what it is: all but the job's, ``out`` and ``resume``."""
    kept = [word for word in without_implied(words) if key_of(word) not in NEVER_SAVED]
    return [word for word in kept if not key_of(word).startswith(("job.", "hydra"))]


def merged(saved: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return ``saved`` under ``words``: the same key is the later one's, and so are the options of a new choice.

    ``model=lenet`` over ``model=cnn model.width=32`` drops the width, which LeNet may not have, and ``run.epochs=9``
    drops ``run.steps=500``, which would decide the length.
    """
    given = {key_of(word): word for word in words}
    if not LENGTHS.isdisjoint(given):
        saved = [word for word in saved if key_of(word) not in LENGTHS]
    return [word for word in saved if key_of(word) not in given and not _outdated(word, saved, given)] + list(words)


def _outdated(word: str, saved: Sequence[str], given: dict[str, str]) -> bool:
    """Say whether a saved option belongs to a component that the newly typed choice no longer names."""
    group, _, rest = key_of(word).partition(".")
    if group not in GROUPS or group not in given or given[group] in saved:
        return False
    return not GROUPS[group].many or rest.partition(".")[0] not in picks_of([given[group]])[group]


def moved(words: Sequence[str], typed: Sequence[str]) -> str:
    """Explain, for an error, a path that was restored and is relative to another folder; empty if there is none."""
    for key, value in _values([word for word in words if word not in typed]).items():
        if key.endswith(".root") and not Path(value).is_absolute() and not Path(value).exists():
            return f" ({key}={value} is restored, relative to the folder that run was started in: add {key}=...)"
    return ""


def _values(words: Sequence[str]) -> dict[str, str]:
    """Return the value of each override that has a plain one, quotes removed."""
    parsed = parse(words)
    return {o.key_or_group: str(o.value()) for o in parsed if not o.is_sweep_override() and o.value() is not None}


def quoted(path: Path | str) -> str:
    """Return a path as an override's value, whatever characters it holds."""
    return QuotedString(str(path), Quote.single).with_quotes()
