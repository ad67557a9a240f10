"""How fast a folder's disk takes and gives one large file, the system's cache left out where that can be."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine import RunFailed, UsageError
from engine.measuring import Spread

BLOCK = 4 << 20  # bytes of one read or write
IN_MEMORY = ("tmpfs", "ramfs")


def require_room(folder: Path, mebibytes: int) -> None:
    """Raise UsageError unless ``folder`` is one and has room for the file and as much again."""
    if not folder.is_dir():
        raise UsageError(f"folder={folder}: no such folder; name one on the disk to measure")
    free = shutil.disk_usage(folder).free >> 20
    if free < 2 * mebibytes:
        raise UsageError(
            f"folder={folder} has {free} MiB free, and a file of size={mebibytes} MiB is to leave as much again: "
            "name another folder or a smaller size"
        )


def measure_disk(folder: Path, mebibytes: int, rounds: int, seconds: float) -> tuple[dict[str, Spread], str]:
    """Return MB/s of "write" (with fsync) and "read" over up to ``rounds`` in ``seconds``, and how the cache was met.

    The file has no name from the start, so nothing can be left behind. Raises UsageError if it cannot be made,
    RunFailed if the disk fails.
    """
    size = mebibytes << 20
    taken: dict[str, list[float]] = {"write": [], "read": []}
    begun = time.perf_counter()
    block = memoryview(mmap.mmap(-1, BLOCK))  # a mapping is aligned, as O_DIRECT asks
    block[:] = os.urandom(BLOCK)  # which no file system can compress
    with _nameless(folder) as (file, direct):
        try:
            while (len(taken["read"]) < rounds and time.perf_counter() - begun < seconds) or not taken["read"]:
                taken["write"].append(_write(file, block, size))
                if not direct:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                taken["read"].append(_read(file, block, size))
        except OSError as error:
            raise RunFailed(f"folder={folder}: the disk cannot be measured ({error.strerror})") from error
    return {name: Spread.of(times).rate(size / 1e6) for name, times in taken.items()}, _told(folder, direct)


@contextmanager
def _nameless(folder: Path) -> Iterator[tuple[int, bool]]:
    """Yield the descriptor of a new file that has lost its name, and whether it bypasses the cache (O_DIRECT)."""
    try:
        file, path = tempfile.mkstemp(prefix=".engine-bench-", dir=folder)
    except OSError as error:
        raise UsageError(f"folder={folder} cannot be written ({error.strerror}): name another") from error
    try:
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:  # a file system without it
        direct = -1
    finally:
        os.unlink(path)
    try:
        yield (file if direct < 0 else direct), direct >= 0
    finally:
        os.close(file)
        if direct >= 0:
            os.close(direct)


def _write(file: int, block: memoryview, size: int) -> float:
    begun, done = time.perf_counter(), 0
    while done < size:
        done += os.pwrite(file, block[: min(BLOCK, size - done)], done)
    os.fsync(file)
    return time.perf_counter() - begun


def _read(file: int, block: memoryview, size: int) -> float:
    begun, done = time.perf_counter(), 0
    while done < size:
        count = os.preadv(file, [block], done)
        if count == 0:
            raise OSError(0, f"{size} bytes were written, {done} can be read")
        done += count
    return time.perf_counter() - begun


def _told(folder: Path, direct: bool) -> str:
    kind = file_system(folder)
    if kind in IN_MEMORY:
        return f"{kind}: it lives in memory, this is no disk"
    how = "past the cache (O_DIRECT)" if direct else "cache dropped (posix_fadvise), perhaps not all of it"
    return f"{kind or 'unknown file system'}, {how}"


def file_system(folder: Path) -> str:
    """Return the kind of the file system that a folder is on, as in "ext4"; "" where the system does not tell."""
    table = Path("/proc/mounts")
    best, kind = "", ""
    for line in table.read_text().splitlines() if table.exists() else ():
        _, point, name, *_ = line.split()
        point = point.replace("\\040", " ")
        if folder.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name
    return kind
