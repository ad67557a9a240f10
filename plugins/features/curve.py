"""The curve of a probe: as a table, for TensorBoard, as CSV and as a picture, and what it advises."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from engine.folder import write_whole

BAR = 30  # characters of an accuracy of 1
UNSURE = 0.03  # standard error of the best accuracy, above which depths cannot be told apart
COLUMNS = ("depth", "layer", "features", "test", "train", "c")


@dataclass(frozen=True)
class Point:
    """A depth of the curve: accuracies of the classifier behind ``layer``."""

    layer: str
    features: int
    test: float
    train: float
    c: float
    gradient: float


def table(points: Sequence[Point]) -> str:
    """Return the curve as a table, with a bar for each accuracy."""
    wide = max(len("layer"), *(len(point.layer) for point in points))
    lines = [f"depth  {'layer':{wide}}  features    test   train       c"]
    best = best_of(points)
    for depth, point in enumerate(points, 1):
        mark = " best" if depth - 1 == best else ""
        lines.append(
            f"{depth:5}  {point.layer:{wide}}  {point.features:8,}  {point.test:6.3f}  {point.train:6.3f}  {point.c:6g}"
            f"  {'#' * round(BAR * point.test)}{mark}"
        )
    return "\n".join(lines)


def best_of(points: Sequence[Point]) -> int:
    """Return the place of the highest test accuracy, the first of equals."""
    return max(range(len(points)), key=lambda place: (points[place].test, -place))


def advice(points: Sequence[Point], images: int, tested: int, classes: int, few: int) -> list[str]:
    """Return what CS231n's table of data and similarity says of such a curve; it is only said.

    Data are scarce with fewer than ``few`` training images to a class. The data that the network was trained on are
    taken for similar if it is the last third of the depths that does best: the first depth whose accuracy is within a
    standard error of the best lies there.
    """
    best = points[best_of(points)]
    error = (best.test * (1 - best.test) / tested) ** 0.5
    first = next(place for place, point in enumerate(points) if point.test >= best.test - error)
    similar, scarce = first >= 2 * len(points) / 3, images < few * classes
    behind = f"{points[first].layer}, depth {first + 1} of {len(points)}"
    if error > UNSURE:
        enough = math.ceil(0.25 / UNSURE**2)
        return [f"{tested:,} test images are too few to tell where the curve is at its best: have {enough:,} or more"]
    likeness = (
        f"{'similar' if similar else 'dissimilar'} data: accuracy is at its best ({best.test:.3f}, within a standard "
        f"error of {error:.3f}) from {behind} on"
    )
    amount = f"{'scarce' if scarce else 'plentiful'} data: {images / classes:,.0f} training images a class (few={few})"
    if scarce and similar:
        todo = "train a linear classifier on the last layers' features: transfer=head transfer.cache=true"
    elif scarce:
        todo = (
            f"the hard case: train a linear classifier on the features behind {points[first].layer}, get more data, or "
            "look for weights from data that are more like yours"
        )
    elif similar:
        todo = "fine-tune the last few layers: transfer=last_k, or transfer=staged"
    else:
        todo = "fine-tune more of the layers, or all: transfer=staged, or transfer=full"
    return [likeness, amount, f"advice: {todo}"]


def write(points: Sequence[Point], out: Path) -> list[Path]:
    """Write the curve for TensorBoard (against the depth), as CSV and, where matplotlib is, as a PNG; return files."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for depth, p in enumerate(points, 1):
        rows.writerow((depth, p.layer, p.features, f"{p.test:.6f}", f"{p.train:.6f}", p.c))
    files = [out / "probe.csv"]
    write_whole(files[0], text.getvalue())
    writer = SummaryWriter(str(out))
    for depth, point in enumerate(points, 1):
        writer.add_scalar("probe/test_accuracy", point.test, depth)
        writer.add_scalar("probe/train_accuracy", point.train, depth)
    writer.add_text("probe/table", "\n".join(f"    {line}" for line in table(points).splitlines()))
    writer.close()
    if picture(points, out / "probe.png"):
        files.append(out / "probe.png")
    return files


def picture(points: Sequence[Point], path: Path) -> bool:
    """Draw the curve into a PNG file; return whether matplotlib is there to draw it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(max(5, 0.5 * len(points)), 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([point.test for point in points], "o-", label="test")
    axes.plot([point.train for point in points], ".:", label="training")
    axes.set_xticks(range(len(points)), [point.layer for point in points], rotation=60, ha="right")
    axes.set_ylabel("accuracy of a linear classifier")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True
