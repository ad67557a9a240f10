"""Image columns of Arrow IPC files and streams, Feather and Parquet, with the conventions of Hugging Face's datasets.

What lies uncompressed in an Arrow file (as ``save_to_disk`` and Hugging Face's cache write it) is read by its place.
Parquet and compressed Arrow have to be unpacked a group of rows at a time; some groups are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from engine import UsageError
from engine.interfaces import Records, Source

from .arrow_columns import targets_and_names
from .arrow_groups import Groups
from .arrow_tables import Table, read_table
from .files import needed
from .labelled import check_targets, fingerprint, shape_of
from .per_process import PerProcess
from .ranges import Place, blocks_of
from .splits import LocalFolder, names_of, shards_of

ENDINGS = (".parquet", ".arrow", ".feather", ".ipc")
HUB = ("data",)  # sub-folder that Hugging Face's repositories keep their Parquet files in


class ArrowImages(Source):
    """Gives the image files in a column; safe to ask from threads and processes.

    The fingerprint covers labels and classes, and the content of records (of files and the names of the columns, where
    they are compressed), as ``labelled.fingerprint`` says.
    """

    def __init__(
        self, table: Table, targets: np.ndarray, classes: Sequence[str], shape: tuple[int, int, int], cache: int
    ) -> None:
        self.classes, self.shape = tuple(classes), shape
        self._table, self._targets = table, torch.from_numpy(targets)
        self._groups = PerProcess(partial(Groups, table, cache))  # locks may be held when a process is forked
        facts: tuple[object, ...] = (self.classes, targets)
        if any(group.places is None for group in table.groups):
            facts += tuple((columns.image, columns.label) for columns in table.columns)
            blocks = list(blocks_of(table.files))
            size, count, read = 0, len(blocks), lambda indices: [blocks[index] for index in indices]
        else:
            size = sum(int(group.places[:, 1].sum()) for group in table.groups if group.places is not None)
            count, read = len(self), lambda indices: [content or b"" for content in self._found(indices)]
        self.fingerprint = fingerprint(facts, count, size, read)

    def __len__(self) -> int:
        return len(self._targets)

    def records(self, indices: Sequence[int]) -> Records:
        """Return the files at ``indices``; raises UsageError naming a row without an image, or a file that changed."""
        found = self._found(indices)
        for index, content in zip(indices, found, strict=True):
            if not content:
                raise UsageError(f"{self.name_of(int(index))} holds no image (null or no bytes); leave such rows out")
        images = [content for content in found if content]
        return Records("encoded", images, self._targets[torch.as_tensor(indices, dtype=torch.int64)])

    def name_of(self, index: int) -> str:
        """Return a record's file and row in it."""
        return self._table.name_of(index)

    def _found(self, indices: Sequence[int]) -> list[bytes | None]:
        """Return the images at ``indices``; none or no bytes where one is missing."""
        rows = np.asarray(indices, np.int64).tolist()
        found: list[bytes | None] = [None] * len(rows)
        plain: dict[int, Place] = {}
        packed: dict[int, list[int]] = {}
        for place, index in enumerate(rows):
            number = self._table.group_of(index)
            group = self._table.groups[number]
            if group.places is None:
                packed.setdefault(number, []).append(place)
            else:
                offset, length = group.places[index - group.first].tolist()
                plain[place] = (group.file, offset, length)
        for place, data in zip(plain, self._table.files.read(plain.values()), strict=True):
            found[place] = data
        for number, inside in packed.items():
            first = self._table.groups[number].first
            values = self._groups.get().values(number, [rows[place] - first for place in inside])
            for place, value in zip(inside, values, strict=True):
                found[place] = value
        return found


def open_arrow(
    root: str, split: str, train: str, test: str | None, image: str | None, label: str | None, classes: int | None,
    size: int | None, channels: int, cache: int,
) -> ArrowImages:  # fmt: skip
    """Return a split; ``cache``: MiB of unpacked images to keep.

    Raises UsageError if pyarrow is not installed, or naming a file that is missing, truncated or damaged, a column that
    is missing or of another type, and the row whose label is missing or out of range.
    """
    needed("pyarrow", "arrow")
    shape = shape_of(size, channels)
    folder = LocalFolder(root)

    def table(split: str) -> Table:
        names = names_of(split, train, test)
        return read_table(
            [Path(folder.root, path) for path in shards_of(folder, split, names, ENDINGS, HUB)], image, label
        )

    found = table(split)
    columns = found.columns[0]
    trained = found if split == "train" else None
    targets, names = targets_and_names(
        found.labels, lambda: (trained or table("train")).labels, columns.names, classes, found.name_of
    )
    check_targets(targets, len(names), found.name_of)
    return ArrowImages(found, targets, names, shape, cache << 20)
