"""A process of ``memory.py``: ``python reading.py STORE BATCH SECONDS``, told by lines on stdin when to go on.

It prints a line when torch is imported and when the store is open, then its private bytes at these two moments and the
most while it read, and the number of images.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

EVERY = 0.1  # seconds between two looks at the memory


def private() -> int:
    """Return the bytes of memory that this process alone has (its unique set size)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def wait(told: str) -> None:
    """Say something, then wait until all others are as far."""
    print(told, flush=True)
    if not sys.stdin.readline():
        raise SystemExit("reading.py: whoever started it is gone")


def main(store: str, batch: int, seconds: float) -> None:
    """Read at random for so long."""
    torch.set_num_threads(1)
    wait("torch is imported")
    before = private()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from inputs import ours

    from engine.loader import Position

    ready = ours.loader([*ours.store_words(Path(store), threads=1), *ours.recipe()], batch)
    wait("the store is open")
    opened = most = private()
    begun = looked = time.monotonic()
    images = 0
    for step in ready.steps(Position()):
        images += step.count
        now = time.monotonic()
        if now - looked > EVERY:
            looked, most = now, max(most, private())
        if now - begun > seconds:
            break
    print(before, opened, most, images)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
