"""``engine verify``: everything that a store holds, read and compared with its checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine import Session, UsageError

from . import layout
from .pack import counted, require_splits, threads_of
from .source import folder_of, read_fully
from .telling import Progress

if TYPE_CHECKING:
    from . import Verify

MOST_RECORDS = 10  # damaged records told of one data file


def verify(session: Session) -> None:
    """Print a line for each split and each fault. Raises UsageError if there is a fault."""
    job: Verify = session.options.job  # type: ignore[assignment]
    root = str(getattr(session.options.data, "root", ""))
    if session.choices["data"] != "store":
        raise UsageError(f"data={session.choices['data']}: verify reads stores; leave it out, or write data=store")
    splits = job.splits or [split for split in layout.SPLITS if (Path(root).expanduser() / split).is_dir()] or ["train"]
    require_splits(splits)
    count = 0
    for folder in [folder_of(root, split) for split in splits]:
        before = count
        for fault in faults(folder, threads_of(job.threads), not session.sweep):
            count += 1
            print(fault, flush=True)
        if count == before:
            meta = layout.read_meta(folder)
            print(f"{folder}: {counted(meta)}, all as they were packed")
    if count:
        raise UsageError(f"data.root={root} has {count} fault{'s' * (count > 1)}, listed above; {layout.REPAIR}")


def faults(folder: Path, threads: int = 1, bar: bool = False) -> Iterator[str]:
    """Yield, in words, everything that is wrong with a store; nothing if it is as it was packed."""
    try:
        meta = layout.read_meta(folder)
    except UsageError as error:
        yield str(error)
        return
    index = None
    try:
        index = layout.read_index(folder, meta)
    except UsageError as error:
        yield str(error)
    progress = Progress(f"verifying {folder.name}", meta.records, "images", bar=bar)
    try:
        with ThreadPoolExecutor(threads) as pool:
            numbers = range(len(meta.shards))
            for found in pool.map(lambda number: _in_shard(folder, meta, index, number, progress.advance), numbers):
                yield from found
    finally:
        progress.close()


def _in_shard(
    folder: Path, meta: layout.Meta, index: layout.Index | None, number: int, advance: Callable[[int], None]
) -> list[str]:
    """Return what is wrong with a data file; with its records too, if it is known where they are."""
    path = folder / layout.shard_name(number)
    facts = meta.files[path.name]
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return [f"{path} cannot be opened ({error.strerror}); {layout.remedy(error)}"]
    found = []
    try:
        layout.require_length(path, facts["bytes"], os.fstat(file).st_size)
    except UsageError as error:
        found.append(str(error))
    try:
        digest, damaged = _read_through(file, facts["bytes"], index, number, advance)
    except UsageError as error:
        return [*found, str(error)]
    finally:
        os.close(file)
    found += [f"{path}: record {row} is damaged: its checksum does not match" for row in damaged[:MOST_RECORDS]]
    if len(damaged) > MOST_RECORDS:
        found.append(f"{path}: {len(damaged) - MOST_RECORDS} more records are damaged")
    if not found and digest != facts["sha256"]:
        found.append(f"{path} was altered: its checksum does not match; {layout.REPAIR}")
    return found


def _read_through(
    file: int, size: int, index: layout.Index | None, number: int, advance: Callable[[int], None]
) -> tuple[str, list[int]]:
    """Return the SHA-256 of a file's first ``size`` bytes, as far as they are there, and its damaged records."""
    first, last = (0, 0) if index is None else (int(index.firsts[number]), int(index.firsts[number + 1]))
    damaged: list[int] = []
    digest, row, offset = hashlib.sha256(), first, 0
    while offset < size:
        end, after = min(size, offset + layout.BLOCK), row
        if index is not None:  # whole records, one at least
            base = int(index.offsets[first])
            after = int(np.searchsorted(index.offsets[row : last + 1], base + end, side="right")) - 1 + row
            after = min(last, max(row + 1, after))
            end = int(index.offsets[after]) - base
        data = np.empty(end - offset, np.uint8)
        if not read_fully(file, data, offset):
            return "", [*damaged, *range(row, after)]
        digest.update(layout.view(data))
        if index is not None:
            damaged += [r for r in range(row, after) if _checksum(data, index, row, r) != index.checksums[r]]
            advance(after - row)
        row, offset = after, end
    return digest.hexdigest(), damaged


def _checksum(data: np.ndarray, index: layout.Index, first: int, row: int) -> int:
    base = index.offsets[first]
    return layout.crc32c(data[int(index.offsets[row] - base) : int(index.offsets[row + 1] - base)])
