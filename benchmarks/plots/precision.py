"""Draws low-precision.png: the test error of each run of a sweep over ``precision``, from its metrics.csv.

``engine train -m experiment=low_precision precision=... out=FOLDER`` makes the runs, and ``python
benchmarks/plots/precision.py FOLDER`` draws them; it needs matplotlib (requirements-bench.txt). A curve is named by
what its run chose for ``precision``.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

COLOURS = ("black", "#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito 2008
MARKS = "osDv^x+"
Curve = tuple[list[int], list[float]]
"""Steps, and the test error after each in %."""


def curves(sweep: Path) -> dict[str, Curve]:
    """Return the curve of every run with a checkpoint below ``sweep`` by its precision, in the order of the jobs."""
    found: dict[str, Curve] = {}
    jobs = (folder for folder in sweep.iterdir() if folder.name.isdigit() and any(folder.glob("checkpoints/step-*")))
    for run in sorted(jobs, key=lambda folder: int(folder.name)):
        found[precision_of(run)] = curve(run / "metrics.csv")
    return found


def curve(metrics: Path) -> Curve:
    """Return what a ``metrics.csv`` says of the test set."""
    with metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("test/accuracy")]
    return [int(row["step"]) for row in rows], [100 * (1 - float(row["test/accuracy"])) for row in rows]


def precision_of(run: Path) -> str:
    """Return the word that a run's command line gave for ``precision``; float32 where it gave none."""
    newest = max((run / "checkpoints").glob("step-*/manifest.json"))
    words = (word.partition("=") for word in json.loads(newest.read_text())["overrides"])
    return next((value for name, _, value in words if name == "precision"), "float32")


def draw(found: dict[str, Curve], path: Path) -> None:
    """Write the picture: error against steps, its axis logarithmic, so that 1 % and 90 % are both seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    figure, panel = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
    for number, (name, (steps, errors)) in enumerate(found.items()):
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        panel.plot(steps, errors, color=colour, marker=mark, markersize=5, label=name)
    panel.set_yscale("log")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    panel.set_yticks(ticks, [str(tick) for tick in ticks])
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set(xlabel="steps of 100 images", ylabel="test error, %")
    panel.grid(alpha=0.3)
    panel.legend(title="precision")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(given: Sequence[str] | None = None) -> None:
    """Read and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="the folder of a sweep's runs")
    parser.add_argument("--to", type=Path, help="default: low-precision.png in that folder")
    chosen = parser.parse_args(given)
    found = curves(chosen.sweep) if chosen.sweep.is_dir() else {}
    mistake = "" if found else f"no runs of a sweep in {chosen.sweep}"
    if not find_spec("matplotlib"):
        mistake = "matplotlib is needed: pip install -r requirements-bench.txt"
    if mistake:
        print(f"benchmarks/plots/precision.py: {mistake}", file=sys.stderr)
        raise SystemExit(2)
    path = chosen.to or chosen.sweep / "low-precision.png"
    draw(found, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
