"""The sample of ImageNet's photographs, and folders of it as data=folder reads them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CLASSES = 1000  # of ImageNet


class Photograph(NamedTuple):
    """A file, its class, and whether it is in colour and upright as it is stored."""

    path: Path
    target: int
    ordinary: bool


def listed(folder: Path) -> list[Photograph]:
    """Return what labels.csv lists."""
    with (folder / "labels.csv").open() as file:
        return [
            Photograph(
                folder / row["file"],
                int(row["class_index"]),
                row["mode"] == "RGB" and row["exif_orientation"] == "1",
            )
            for row in csv.DictReader(file)
        ]


def make_folder(root: Path, photographs: Sequence[Photograph]) -> list[int]:
    """Link photographs, of one class each, where data=folder reads them; return the classes in the order read.

    All classes of ImageNet have a folder, so that they have their numbers.
    """
    for number in range(CLASSES):
        (root / "train" / f"{number:04d}").mkdir(parents=True)
    for path, number, _ in photographs:
        link = root / "test" / f"{number:04d}" / path.name
        link.parent.mkdir(parents=True)
        link.symlink_to(path)
    return sorted(number for _, number, _ in photographs)
