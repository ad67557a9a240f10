"""Caffe's LevelDB databases: Datum records in the order of their keys.

LevelDB knows no reading alone: whoever opens a database locks it against every other process and tidies it up. So
each process opens a folder of its own with links to the database's files; what LevelDB writes goes there, and the
database stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np

from engine import UsageError

from .databases import DatumSource, classes_of, largest
from .datum import label_of
from .files import needed
from .leveldb_manifest import REPAIR, live_files
from .lmdb_pages import shown
from .per_process import PerProcess
from .ranges import reason
from .splits import names_of, one_of

ENDINGS = ("", "_leveldb", ".leveldb")


class Opened:
    """A database opened through links in a temporary folder, which goes when this does."""

    def __init__(self, folder: Path) -> None:
        plyvel = needed("plyvel", "leveldb")
        links = Path(tempfile.mkdtemp(prefix="engine-leveldb-"))
        # When this goes or the process ends, one of multiprocessing too; not in a fork, which inherits the object.
        Finalize(self, shutil.rmtree, (links,), {"ignore_errors": True}, exitpriority=0)
        for path in live_files(folder):
            if path.name == "CURRENT":
                shutil.copyfile(path, links / path.name)
            else:
                os.symlink(path.resolve(), links / path.name)
        try:
            self.database = plyvel.DB(str(links), create_if_missing=False, paranoid_checks=True)
        except plyvel.Error as error:
            raise UsageError(f"{folder} cannot be opened ({reason(error)}); {REPAIR}") from error


class LevelDb:
    """The values of a LevelDB database; opening it reads all of it once, as keys lie between values.

    Raises UsageError naming the database if it is damaged or empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._error = needed("plyvel", "leveldb").Error
        self._opened = PerProcess(partial(Opened, folder))
        self._keys: list[bytes] = []
        self._labels: list[int | None] = []
        self.size, digest = 0, hashlib.blake2b(digest_size=16)
        try:
            # The raw one asks after each step whether it failed; the other takes a damaged last block for the end.
            with self._database().raw_iterator(verify_checksums=True, fill_cache=False) as record:
                record.seek_to_first()
                while record.valid():
                    key, value = record.item()
                    digest.update(value)
                    self._add(key, value)
                    record.next()
        except self._error as error:
            after = f" after {shown(self._keys[-1])}" if self._keys else ""
            raise UsageError(f"{folder} is damaged{after} ({reason(error)}); {REPAIR}") from error
        if not self._keys:
            raise UsageError(f"{folder} holds no records; {REPAIR}")
        self.facts: tuple[object, ...] = (b"\0".join(self._keys), digest.hexdigest())

    def __len__(self) -> int:
        return len(self._keys)

    def values(self, indices: Sequence[int]) -> list[bytes]:
        """Return the values at ``indices``, their checksums compared; raises UsageError naming a damaged record."""
        return [self._value(int(index)) for index in np.asarray(indices, np.int64)]

    def largest_label(self) -> int:
        """Return the largest label."""
        return largest(self._labels, self.name_of)

    def name_of(self, index: int) -> str:
        """Return the database's folder and a record's key."""
        return f"{self._folder}: {shown(self._keys[index])}"

    def _database(self) -> Any:
        return self._opened.get().database

    def _add(self, key: bytes, value: bytes) -> None:
        self._keys.append(key)
        self.size += len(value)
        try:
            self._labels.append(label_of(lambda offset, size: value[offset : offset + size], len(value)))
        except ValueError as error:
            raise UsageError(f"{self._folder}: {shown(key)} is damaged: {error}") from error

    def _value(self, index: int) -> bytes:
        try:
            value = self._database().get(self._keys[index], verify_checksums=True)
        except self._error as error:
            raise UsageError(f"{self.name_of(index)} cannot be read ({reason(error)}); {REPAIR}") from error
        if value is None:
            raise UsageError(f"{self.name_of(index)} is not there any more; {REPAIR}")
        return value


def open_leveldb(
    root: str, split: str, train: str, test: str | None, classes: int | None, size: int | None, channels: int, bgr: bool
) -> DatumSource:
    """Return a split.

    Raises UsageError if plyvel is not installed, or naming a database that is missing, truncated or damaged, and the
    record that is no image.
    """
    needed("plyvel", "leveldb")

    def database(split: str) -> LevelDb:
        return LevelDb(one_of(root, split, names_of(split, train, test), ENDINGS, Path.is_dir))

    opened = database(split)
    names = classes_of(classes, lambda: opened if split == "train" else database("train"), root)
    return DatumSource(opened, names, size, channels, bgr)
