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
    facts, records = meta.files[path.name], range(0)
    if index is not None:
        records = range(int(index.firsts[number]), int(index.firsts[number + 1]))
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        advance(len(records))
        return [f"{path} cannot be opened ({error.strerror}){_lost(records)}; {layout.remedy(error)}"]
    found, whole, end = [], records, facts["bytes"]
    try:
        length = os.fstat(file).st_size
        if length > end:
            found.append(f"{path} has {length} bytes instead of {end}: it is altered; {layout.REPAIR}")
        if length < end:
            whole, end = _whole(index, records, length)
            lost = _lost(records[len(whole) :])
            found.append(f"{path} ends after {length} of {facts['bytes']} bytes{lost}; {layout.REPAIR}")
            advance(len(records) - len(whole))
        digest, damaged = _read_through(file, end, index, whole, advance)
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


def _whole(index: layout.Index | None, records: range, length: int) -> tuple[range, int]:
    """Return which records are in the first ``length`` bytes of their data file, and where the last of them ends."""
    if index is None:
        return records, 0
    ends = index.offsets[records.start : records.stop + 1] - index.offsets[records.start]
    count = int(np.searchsorted(ends, length, side="right")) - 1
    return records[:count], int(ends[count])


def _lost(records: range) -> str:
    """Return in words that records are lost; nothing if there are none, or none are known."""
    if len(records) < 2:
        return f": record {records.start} is lost" if records else ""
    return f": records {records.start} to {records.stop - 1} are lost"


def _read_through(
    file: int, size: int, index: layout.Index | None, records: range, advance: Callable[[int], None]
) -> tuple[str, list[int]]:
    """Return the SHA-256 of a file's first ``size`` bytes, and the damaged ones among the records that fill them.

    Raises UsageError if they are there no more, or the disk fails.
    """
    damaged: list[int] = []
    digest, row, offset = hashlib.sha256(), records.start, 0
    while offset < size:
        end, after = min(size, offset + layout.BLOCK), row
        if index is not None:  # whole records, one at least
            base = int(index.offsets[records.start])
            after = int(np.searchsorted(index.offsets[row : records.stop + 1], base + end, side="right")) - 1 + row
            after = min(records.stop, max(row + 1, after))
            end = int(index.offsets[after]) - base
        data = np.empty(end - offset, np.uint8)
        if not read_fully(file, data, offset):
            raise UsageError(f"{os.readlink(f'/proc/self/fd/{file}')} was truncated while it was read; {layout.REPAIR}")
        digest.update(layout.view(data))
        if index is not None:
            damaged += [r for r in range(row, after) if _checksum(data, index, row, r) != index.checksums[r]]
            advance(after - row)
        row, offset = after, end
    return digest.hexdigest(), damaged


def _checksum(data: np.ndarray, index: layout.Index, first: int, row: int) -> int:
    base = index.offsets[first]
    return layout.crc32c(data[int(index.offsets[row] - base) : int(index.offsets[row + 1] - base)])
