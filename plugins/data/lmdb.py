"""Caffe's LMDB databases: Datum records in the order of their keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine import UsageError

from .databases import DatumSource, classes_of, largest
from .datum import label_of
from .lmdb_pages import HEADER, OVERFLOW, REPAIR, records_in, shown
from .ranges import LocalFiles
from .splits import names_of, one_of

ENDINGS = ("", "_lmdb", ".lmdb", ".mdb")


class LmdbFile:
    """The values of an LMDB file, read by their place; the file is neither mapped nor locked.

    Raises UsageError naming the file, and the record or page, if it is truncated, damaged or empty.
    """

    def __init__(self, path: Path) -> None:
        self._files = LocalFiles([path / "data.mdb" if path.is_dir() else path])
        self._found = records_in(self._files)
        self.size = int(self._found.lengths.sum())
        self.facts: tuple[object, ...] = (b"\0".join(self._found.keys), self._found.lengths.tobytes())

    def __len__(self) -> int:
        return len(self._found.keys)

    def values(self, indices: Sequence[int]) -> list[bytes]:
        """Return the values at ``indices``; raises UsageError naming one whose pages are not what they should be."""
        found = self._found
        rows = np.asarray(indices, np.int64)
        before = np.where(found.big[rows], HEADER, 0)
        starts, lengths = found.offsets[rows] - before, found.lengths[rows] + before
        read = self._files.read((0, int(start), int(length)) for start, length in zip(starts, lengths, strict=True))
        values = []
        for index, start, data in zip(rows.tolist(), starts.tolist(), read, strict=True):
            if found.big[index]:
                own, kind = int.from_bytes(data[:8], "little"), int.from_bytes(data[10:12], "little")
                if own != start // found.page or not kind & OVERFLOW:
                    raise UsageError(
                        f"{self.name_of(index)} is damaged: its pages are not what they should be; {REPAIR}"
                    )
                data = data[HEADER:]
            values.append(data)
        return values

    def largest_label(self) -> int:
        """Return the largest label; of each record only the bytes around its image are read."""
        labels = []
        with self._files.opened(0) as file:
            places = zip(self._found.offsets.tolist(), self._found.lengths.tolist(), strict=True)
            for index, (start, length) in enumerate(places):
                try:
                    labels.append(label_of(lambda offset, size, s=start: os.pread(file, size, s + offset), length))  # type: ignore[misc]
                except ValueError as error:
                    raise UsageError(f"{self.name_of(index)} is damaged: {error}") from error
        return largest(labels, self.name_of)

    def name_of(self, index: int) -> str:
        """Return the file and a record's key."""
        return f"{self._files.name(0)}: {shown(self._found.keys[index])}"


def open_lmdb(
    root: str, split: str, train: str, test: str | None, classes: int | None, size: int | None, channels: int, bgr: bool
) -> DatumSource:
    """Return a split.

    Raises UsageError naming a database that is missing, truncated or damaged, and the record that is no image.
    """

    def database(split: str) -> LmdbFile:
        return LmdbFile(one_of(root, split, names_of(split, train, test), ENDINGS))

    opened = database(split)
    names = classes_of(classes, lambda: opened if split == "train" else database("train"), root)
    return DatumSource(opened, names, size, channels, bgr)
