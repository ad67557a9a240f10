"""Bytes and seconds of a step of many processes: Krizhevsky's hybrid beside torch's DistributedDataParallel.

Processes have one thread each and a network of their own, so that its counters are exact: a loopback, or virtual links
of 1 Gbit/s or 100 Mbit/s at a switch. Sides take turns, step by step, on the same batches from the same weights. Also:
training on two cores by two processes beside one process with two threads. See docs/results/parallel.md.
"""

from __future__ import annotations

import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import Report, Spread, arguments, refuse
from processes import networks
from processes.scaling import scaling

HERE = Path(__file__).resolve().parent
SCALING = "scaling"
DDP, COMPRESSED = "DDP", "DDP, bfloat16"
CONVOLUTIONS, HEAD = 2_469_696, 58_631_144  # parameters of AlexNet
INPUTS, CLASSES = (9216, 4096, 4096), 1000  # of its fully connected layers


@dataclass(frozen=True)
class Row:
    """One comparison: so many processes, samples of each, pixels of an image's side, over which link."""

    name: str
    world: int
    batch: int
    pixels: int
    link: str = ""
    faster: float | None = None  # than DDP: the target of the best scheme
    fewer: float | None = None  # bytes than DDP: the target of scheme d
    sides: tuple[str, ...] = (DDP, COMPRESSED, "hybrid a", "hybrid d")
    rounds: int = 5


ROWS = (
    Row("loopback, 4 processes, batch 32", 4, 32, 64, faster=2.0, fewer=15.0, rounds=8),
    Row("loopback, 4 processes, batch 128", 4, 128, 64, fewer=7.0, rounds=3),
    Row("loopback, 2 processes, batch 32, every scheme", 2, 32, 64,
        sides=(DDP, COMPRESSED, *(f"hybrid {scheme}" for scheme in "abcd")), rounds=8),
    Row("loopback, 2 processes, batch 32, 224 pixels", 2, 32, 224, rounds=4),
    Row("1 Gbit/s, 4 processes, batch 32", 4, 32, 64, "1gbit", faster=2.5, rounds=5),
    Row("100 Mbit/s, 2 processes, batch 32", 2, 32, 64, "100mbit", faster=7.0, rounds=3),
)  # fmt: skip
QUICK = (Row("loopback, 2 processes, batch 32", 2, 32, 64, rounds=2),)


def expected_bytes(side: str, world: int, batch: int) -> float:
    """Return what all processes together send in a step by the formula: gradients, and what crosses the head."""
    ring = 2 * (world - 1) * 4  # of an all-reduce, for each parameter
    if side.startswith(DDP):
        return ring * (CONVOLUTIONS + HEAD) / (2 if side == COMPRESSED else 1)
    wide, hidden = INPUTS[0], sum(INPUTS[1:])
    if side == "hybrid d":
        head = 8 * (world - 1) * batch * (wide / world + hidden + CLASSES)
        biases = ring * CLASSES  # of the last layer, which every process has as a whole
    else:
        head = 8 * (world - 1) * batch * (wide + hidden + CLASSES / world)
        biases = 0
    return ring * CONVOLUTIONS + world * head + biases


def tell(report: Report, row: Row, result: Mapping[str, Any]) -> None:
    """Add a comparison's table and claims to the report."""
    base = result[DDP]
    rows = []
    faster: dict[str, Spread] = {}
    for side, figures in result.items():
        sent = statistics.median(figures["bytes"])
        ratio = Spread.of([a / b for a, b in zip(base["seconds"], figures["seconds"], strict=True)])
        against = Spread.of([a / b for a, b in zip(result[COMPRESSED]["seconds"], figures["seconds"], strict=True)])
        faster[side] = ratio
        formula = expected_bytes(side, row.world, row.batch)
        rows.append([
            side, f"{sent / 1e6:.1f}", f"{sent / formula:.4f}", f"{statistics.median(base['bytes']) / sent:.2f}",
            Spread.of(figures["seconds"]).text(), ratio.text(digits=2), against.text(digits=2),
        ])  # fmt: skip
        report.claim(f"{row.name}, {side}: bytes off the formula", abs(sent / formula - 1), 0.01, "of it")
    columns = ["side", "MB a step", "over the formula", "fewer than DDP", "s a step", "times as fast as DDP",
               "as DDP in bfloat16"]  # fmt: skip
    report.table(f"AlexNet, {row.name}, {row.pixels} pixels", columns, rows)
    if row.fewer is not None:
        fewer = statistics.median(base["bytes"]) / statistics.median(result["hybrid d"]["bytes"])
        report.claim(f"{row.name}: bytes of scheme d, fewer than DDP", fewer, row.fewer, "x", at_least=True)
    if row.faster is not None:
        best = max(ratio.median for side, ratio in faster.items() if side.startswith("hybrid"))
        report.claim(f"{row.name}: step of the best scheme, faster than DDP", best, row.faster, "x", at_least=True)


def options(parser: ArgumentParser) -> None:
    """Add what only this benchmark takes."""
    parser.add_argument("--only", default="", help="comparisons whose name contains this; scaling: that alone")
    parser.add_argument("--write", type=Path, help="file for the tables, in Markdown")


def main(given: Sequence[str] | None = None) -> None:
    """Measure and report."""
    chosen = arguments(__doc__ or "", given, options)
    if reason := networks.available():
        refuse("parallel.py", reason)
    report = Report(chosen.json, page=chosen.write, heading="# Parallel training: tables")
    for row in QUICK if chosen.quick else ROWS:
        if chosen.only in row.name:
            work = {"sides": row.sides, "rounds": chosen.rounds or row.rounds, "batch": row.batch, "pixels": row.pixels}
            tell(report, row, networks.carry_out(HERE / "processes" / "steps.py", work, row.world, row.link))
    if chosen.only in SCALING:
        scaling(report, chosen.rounds or (1 if chosen.quick else 5), 30 if chosen.quick else 60)
    report.close(threads_of_each_process=1)


if __name__ == "__main__":
    main()
