"""How far a job has come: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines


class Progress:
    """Tells how many of ``total`` are done, on standard error; ``done`` of them were there before."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0, bar: bool = True) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._first = self._done = done
        self._begun = self._told = time.monotonic()
        self._bar = None
        if bar and sys.stderr.isatty():
            columns = os.get_terminal_size(sys.stderr.fileno()).columns  # 0 where nobody told the terminal its size
            self._bar = tqdm(
                desc=what, total=total, initial=done, unit=f" {unit}", file=sys.stderr,
                ncols=None if columns else 80, nrows=None if columns else 20, dynamic_ncols=columns > 0,
            )  # fmt: skip

    def advance(self, count: int) -> None:
        """Take note that ``count`` more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            rate = (self._done - self._first) / (self._told - self._begun)
            left = round((self._total - self._done) / rate) if rate else 0
            say(f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.0f} a second, {left:,} s left")

    def close(self) -> None:
        """Leave the terminal to others."""
        if self._bar is not None:
            self._bar.close()


def say(text: str) -> None:
    """Print a line on standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def listed(names: list[str], most: int = 10) -> str:
    """Return the first names separated by commas, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
