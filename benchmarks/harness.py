"""What all benchmarks share: sides that take turns, medians with their spread, claims against stated targets.

A side is a function that does some work. All sides of a comparison do the same work and take turns in one
process, in an order that is drawn anew every round, so that whatever else the machine does meets all of them, and no
side always finds in the caches what the same other one has left there. Sides are
compared round by round: the median of the ratios within a round, not the ratio of two medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

Side = Callable[[], float | None]
"""Does the work once. Returns the seconds it took, where it leaves its own set-up out; None: the call is timed."""


@dataclass(frozen=True)
class Spread:
    """The middle of some measurements: quartiles and median."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the quartiles of one value or more, interpolated between neighbours."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def text(self, scale: float = 1.0, digits: int = 3) -> str:
        """Return "median (low .. high)", each times ``scale``."""
        low, median, high = (f"{value * scale:.{digits}f}" for value in (self.low, self.median, self.high))
        return f"{median} ({low} .. {high})"


class Times(dict[str, list[float]]):
    """Seconds of every side, round by round."""

    def spread(self, side: str) -> Spread:
        """Return a side's seconds."""
        return Spread.of(self[side])

    def ratio(self, side: str, over: str) -> Spread:
        """Return how many times as long as ``over`` a side took, compared within each round."""
        return Spread.of([a / b for a, b in zip(self[side], self[over], strict=True)])

    def difference(self, side: str, over: str) -> Spread:
        """Return how many seconds longer than ``over`` a side took, compared within each round."""
        return Spread.of([a - b for a, b in zip(self[side], self[over], strict=True)])


def interleave(
    sides: Mapping[str, Side], rounds: int, warmup: int = 1, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Let all sides take turns for ``warmup`` rounds that do not count and ``rounds`` that do; return their times."""
    names = list(sides)
    times = Times({name: [] for name in names})
    for turn in range(warmup + rounds):
        for name in random.Random(turn).sample(names, len(names)):
            begun = clock()
            own = sides[name]()
            seconds = clock() - begun if own is None else own
            if turn >= warmup:
                times[name].append(seconds)
    return times


@dataclass(frozen=True)
class Claim:
    """A measured value beside the target that was stated before anything was measured."""

    name: str
    value: float
    target: float
    unit: str
    met: bool


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))


class Report:
    """Prints tables as they come, and at the end the claims: as a table, or with ``--json`` as one last line.

    as_markdown: tables are printed in Markdown, for ``docs/results``. page: a file that ``close`` writes all tables and
    claims to, in Markdown below ``heading``; nothing is written if the measuring ends before.
    """

    def __init__(
        self, as_json: bool = False, as_markdown: bool = False, page: Path | None = None, heading: str = ""
    ) -> None:
        self.as_json, self.as_markdown = as_json, as_markdown
        self.claims: list[Claim] = []
        self._page, self._sections = page, [heading]

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table under its title, every column as wide as its longest entry."""
        self._sections.append(f"## {title}\n\n{markdown(columns, rows)}")
        if self.as_markdown:
            print(f"\n{title}\n\n{markdown(columns, rows)}", flush=True)
            return
        widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
        print(f"\n{title}")
        for row in (columns, ["-" * width for width in widths], *rows):
            print("  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip(), flush=True)

    def claim(self, name: str, value: float, target: float, unit: str, at_least: bool = False) -> None:
        """Note a claim: ``value`` is to be at most ``target``, or at least with ``at_least``."""
        self.claims.append(Claim(name, value, target, unit, value >= target if at_least else value <= target))

    def close(self, **more: Any) -> None:
        """Print the claims, and what the figures depend on: the machine, and what a benchmark adds."""
        facts = machine() | more
        columns = ["claim", "value", "target", "unit", "met"]
        rows = [[c.name, f"{c.value:.4g}", f"{c.target:g}", c.unit, "yes" if c.met else "NO"] for c in self.claims]
        if self._page:
            heading, *sections = self._sections
            claims = f"## Claims\n\n{markdown(columns, rows)}"
            self._page.write_text("\n\n".join([heading, claims, *sections]) + "\n")
        if self.as_json:
            print(json.dumps({"claims": [asdict(claim) for claim in self.claims], "machine": facts}))
            return
        self.table("claims", columns, rows)
        print("\n" + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, versions, threads, instruction set; no names of hosts."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def refuse(benchmark: str, reason: str) -> NoReturn:
    """Exit with 2 and one line."""
    print(f"benchmarks/{benchmark}: {reason}", file=sys.stderr)
    raise SystemExit(2)


def arguments(
    description: str,
    given: Sequence[str] | None = None,
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """Read a benchmark's command line: ``quick``, ``json``, ``threads`` and ``rounds`` (None: the benchmark's own).

    ``more`` adds what only this benchmark takes.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under 60 seconds in all")
    parser.add_argument("--json", action="store_true", help="print claims and machine as JSON, on the last line")
    parser.add_argument("--rounds", type=int, help="rounds of every comparison")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="compute threads (default 2)")
    more(parser)
    return parser.parse_args(given)
