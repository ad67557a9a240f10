"""What four processes that read one store take for themselves, beyond what importing torch takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from . import Bench
from .crops import prepared
from .enlarging import large_store

PROCESSES = 4
BATCHES = (16, 64)  # of a process: run.batch=64, which is for all of them together, and four times that
READER = Path(__file__).resolve().parent / "reading.py"


def memory(bench: Bench) -> None:
    """Have four processes read a large store at random, and ask what memory each has alone."""
    _, small = prepared(bench)
    seconds, batches = bench.pick(1.0, 10.0), bench.pick(BATCHES[:1], BATCHES)
    with large_store(bench.folder / "shared", small, bench.pick(0.25e9, 10e9)) as (large, size):
        told = {batch: read_together(large, batch, seconds) for batch in batches}
    heads = ["process", "batch", "MB of torch", "opened", "while reading, most", "more than torch", "images read"]
    rows = [
        [str(number), str(batch), *(f"{value / 1e6:.1f}" for value in (*facts[:3], facts[2] - facts[0])), str(facts[3])]
        for batch, values in told.items()
        for number, facts in enumerate(values, 1)
    ]
    title = f"private memory of {PROCESSES} processes that read one store of {size / 1e9:.1f} GB at random, MB"
    bench.report.table(title, heads, rows)
    most = max(facts[2] - facts[0] for facts in told[BATCHES[0]])
    bench.report.claim(f"private memory of each of {PROCESSES} readers, above torch", most / 1e6, 200, "MB")


def read_together(store: Path, batch: int, seconds: float) -> list[list[int]]:
    """Return for each process its private bytes after importing torch, after opening, at most, and images read.

    All have imported torch before the first is asked, so what they share is shared. Raises SystemExit if one fails.
    """
    command = [sys.executable, str(READER), str(store), str(batch), str(seconds)]
    pipe = subprocess.PIPE
    readers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(PROCESSES)]
    try:
        for _ in range(2):  # torch is imported; then the store is open
            for reader in readers:
                reader.stdout.readline()
            for reader in readers:
                reader.stdin.write("go\n")
                reader.stdin.flush()
        told = [reader.communicate()[0].split() for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    if failed := [reader.returncode for reader in readers if reader.returncode]:
        raise SystemExit(f"{READER.name} ended with {failed[0]}; what it said is above")
    return [[int(word) for word in words] for words in told]
