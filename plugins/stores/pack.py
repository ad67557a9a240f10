"""``engine pack``: any data into a store."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine import Session, UsageError
from engine.folder import claim

from .layout import ENCODED, SPLITS, Meta
from .packing import Packing
from .recipe import Recipe
from .telling import Progress, listed, say

if TYPE_CHECKING:
    from . import Pack

SKIP = "skip_unreadable"  # the job's option, and that of data which refuses unreadable files when it is opened


def pack(session: Session) -> None:
    """Pack each split of the chosen data into a folder of its own below ``out``; what is there already stays.

    Raises UsageError for what cannot be packed and for unreadable images, RunFailed if the disk takes no more.
    """
    job: Pack = session.options.job  # type: ignore[assignment]
    if not session.options.out:
        raise UsageError("out must be given (the folder of the new store): add out=... to the command")
    require_splits(job.splits)
    if job.content == ENCODED and job.shorter_side is not None:
        raise UsageError(
            f"shorter_side={job.shorter_side} reduces pixels, and content=encoded keeps files as they are: leave out "
            "one of them"
        )
    data = session.options.data
    if job.skip_unreadable and hasattr(data, SKIP):  # what a source finds when it is opened is no other matter
        skipping: dict[str, Any] = {SKIP: True}
        data = replace(data, **skipping)
    sources = {split: data.build(split) for split in job.splits}
    recipe = Recipe(job.content, job.shorter_side)
    for source in sources.values():
        recipe.bytes_each(source)  # what cannot be packed is refused before anything is written
    with claim(session.out, resuming=True):
        for split, source in sources.items():
            packing = Packing.begin(session.out / split, source, recipe, job.shard_size << 20)
            if packing is None:
                print(f"{session.out / split}: packed already, nothing to do")
                continue
            meta = _packed(packing, threads_of(job.threads), job.skip_unreadable, bar=not session.sweep)
            for fault in meta.skipped[len(packing.refused) :]:  # the source has told of those before
                say(f"skipped {fault}")
            print(f"{session.out / split}: {_summary(meta)}", flush=True)


def require_splits(splits: list[str]) -> None:
    """Raise UsageError unless splits are named, each once."""
    if not splits or not set(splits) <= set(SPLITS) or len(set(splits)) < len(splits):
        raise UsageError(f"splits=[{','.join(splits)}]: write [train,test], [train] or [test]")


def threads_of(threads: int | None) -> int:
    """Return how many threads to use: so many, or one for each core that this process may use."""
    return threads or len(os.sched_getaffinity(0))


def _packed(packing: Packing, threads: int, skip_unreadable: bool, bar: bool) -> Meta:
    finished = packing.finished()
    done = sum(len(packing.records_of(number)) for number in finished)
    if done:
        packing.require_same(finished, threads)
        say(f"{packing.folder}: going on after {done:,} of {len(packing.source):,} images")
    progress = Progress(f"packing {packing.folder.name}", len(packing.source), "images", done, bar)
    try:
        for number in range(packing.shards):
            if number not in finished:
                packing.write_shard(number, threads, progress.advance)
    finally:
        progress.close()
    faults = packing.faults()
    if faults and not skip_unreadable:
        raise UsageError(
            f"{packing.folder.name} has {len(faults)} unreadable image{'s' * (len(faults) > 1)}: {listed(faults)}; "
            "give the command again with skip_unreadable=true, which leaves them out and packs nothing anew"
        )
    return packing.commit()


def _summary(meta: Meta) -> str:
    size = sum(file["bytes"] for file in meta.files.values())
    left_out = f", {len(meta.skipped):,} unreadable left out" if meta.skipped else ""
    return f"{counted(meta)}, {size / 1e6:,.1f} MB{left_out}"


def counted(meta: Meta) -> str:
    """Return in words how many images a store has, in how many data files."""
    return f"{meta.records:,} images in {len(meta.shards):,} data file{'s' * (len(meta.shards) > 1)}"
