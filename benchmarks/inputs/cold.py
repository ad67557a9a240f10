"""Reading a store that is not in the system's cache, in order, beside a plain read of the same bytes."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

from harness import Side, Spread, interleave

from engine.loader import Loader, Position, TestLoader

from . import Bench, ours
from .crops import prepared
from .enlarging import large_store

BLOCK = 4 << 20  # bytes of one plain read
BATCH = 64
RECORDS, MIXED = 128, 4  # of a block, about 32 MB, and blocks that are shuffled together: 12 such windows in 3 GB
PLAIN, ENGINE = "plain read", "engine, test split"


def cold(bench: Bench) -> None:
    """Read a large store in order, its pages dropped before every turn."""
    _, small = prepared(bench)
    with large_store(bench.folder / "large", small, bench.pick(0.25e9, 3e9)) as (large, size):
        compare(bench, large, size)


def compare(bench: Bench, store: Path, size: int) -> None:
    """Report on the readers of ``store``, whose data files have ``size`` bytes."""
    files = sorted((store / "train").glob("data-*.bin"))
    words = [*ours.store_words(store), *ours.recipe()]
    in_order, at_random = ours.test_loader(words, BATCH), ours.loader(words, BATCH)
    in_blocks = ours.loader(
        [*words, "data.shuffle=blocks", f"data.block={RECORDS}", f"data.blocks_mixed={MIXED}"], BATCH
    )
    sides: dict[str, Side] = {
        PLAIN: from_disk(files, lambda: plain(files)),
        ENGINE: from_disk(files, lambda: evaluation(in_order)),
        "engine, training order": from_disk(files, lambda: training(at_random)),
        "engine, training order in blocks": from_disk(files, lambda: training(in_blocks)),
        "engine, test split, in the cache": timed(lambda: evaluation(in_order)),
    }
    times = interleave(sides, bench.turns(2, 5), warmup=0)
    rows = []
    for name in sides:
        speed = Spread.of([size / 1e9 / seconds for seconds in times[name]])
        rows.append([name, speed.text(1, 2), times.ratio(PLAIN, name).text(1, 2)])
    title = f"a store of {size / 1e9:.1f} GB from the disk, as crops of 224"
    bench.report.table(title, ["side", "GB/s", f"times {PLAIN}"], rows)
    share = times.ratio(PLAIN, ENGINE).median
    bench.report.claim("cold store in order, over a plain read", share, 0.8, "x", at_least=True)


def plain(files: list[Path]) -> None:
    """Read files from the first byte to the last, in blocks of 4 MiB, into the same memory, telling the system so."""
    block = memoryview(bytearray(BLOCK))
    for path in files:
        descriptor, place = os.open(path, os.O_RDONLY), 0
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := os.preadv(descriptor, [block], place):
            place += count
        os.close(descriptor)


def evaluation(loader: TestLoader) -> None:
    """Go through the test split, as an evaluation does."""
    for _ in loader:
        pass


def training(loader: Loader) -> None:
    """Go through one epoch in a training's random order."""
    for step in loader.steps(Position()):
        if step.epochs_done is not None:
            return


def from_disk(files: list[Path], read: Callable[[], None]) -> Side:
    """Return the side that reads files which are not in the cache. Raises SystemExit if they cannot be dropped."""

    def turn() -> float:
        for path in files:
            drop(path)
        if (left := max(map(cached, files))) > 0.05:
            raise SystemExit(f"{files[0].parent}: {left:.0%} of a file stays in the system's cache; use another disk")
        return timed(read)() or 0.0

    return turn


def timed(read: Callable[[], None]) -> Side:
    """Return the side that reads files as they are."""

    def turn() -> float:
        begun = time.perf_counter()
        read()
        return time.perf_counter() - begun

    return turn


def drop(path: Path) -> None:
    """Have the system forget what it keeps of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def cached(path: Path) -> float:
    """Return which share of a file's pages is in the system's cache, as mincore(2) tells."""
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as held,
    ):
        pages = -(-size // mmap.PAGESIZE)
        told = (ctypes.c_ubyte * pages)()
        begin = ctypes.c_ubyte.from_buffer(held)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(begin)), ctypes.c_size_t(size), told
        )
        del begin
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return sum(page & 1 for page in told) / pages
