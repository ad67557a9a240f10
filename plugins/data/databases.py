"""Sources of Caffe Datum records, whatever database they are in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from engine import UsageError
from engine.interfaces import Records, Source

from .datum import Datum, parse
from .labelled import fingerprint, fitted, label_error, numbered, shape_of


class Database(Protocol):
    """Random access to the values of a database, in the order of its keys, from any thread and process."""

    size: int
    """Bytes of all values."""
    facts: tuple[object, ...]
    """What is known of all records for the fingerprint, the keys among it."""

    def __len__(self) -> int: ...

    def values(self, indices: Sequence[int]) -> list[bytes]:
        """Return some values. Raises UsageError naming one that cannot be read."""
        ...

    def largest_label(self) -> int:
        """Return the largest of all labels. Raises UsageError naming a record without one."""
        ...

    def name_of(self, index: int) -> str:
        """Return what to call a record in a message."""
        ...


class DatumSource(Source):
    """Gives a database's records in the order of its keys: raw pixels as red, green, blue, image files as they are.

    Whether they are files is as the first record says, and all must agree. The fingerprint covers keys and records,
    as ``labelled.fingerprint`` says; of LevelDB, which is read wholly anyway, every byte.
    Raises UsageError naming the first record if it is no image.
    """

    def __init__(self, database: Database, classes: Sequence[str], size: int | None, channels: int, bgr: bool) -> None:
        self.classes = tuple(classes)
        self._database, self._scaled, self._bgr = database, size is not None, bgr
        first = self._parsed(0, database.values([0])[0])
        self._encoded = first.encoded
        if self._encoded:
            self.shape = shape_of(size, channels)
        else:
            own, height, width = first.shape
            self.shape = (own, size or height, size or width)
            if size is not None and own not in (1, 3):
                raise UsageError(f"data.size={size}: images of {own} channels can be read in their own size only")
        facts = (*database.facts, self.classes, bgr)
        self.fingerprint = fingerprint(facts, len(database), database.size, database.values)

    def __len__(self) -> int:
        return len(self._database)

    def records(self, indices: Sequence[int]) -> Records:
        """Return the records at ``indices``. Raises UsageError naming one that is damaged or has a bad label."""
        values = self._database.values(indices)
        found = [self._parsed(index, value) for index, value in zip(indices, values, strict=True)]
        targets = torch.tensor(
            [self._label(index, d) for index, d in zip(indices, found, strict=True)], dtype=torch.int64
        )
        if self._encoded:
            return Records("encoded", [datum.data for datum in found], targets)
        images = np.empty((len(found), *self.shape), np.uint8)
        for place, (index, datum) in enumerate(zip(indices, found, strict=True)):
            images[place] = self._pixels(index, datum)
        return Records("raw", torch.from_numpy(images), targets)

    def name_of(self, index: int) -> str:
        """Return a record's database and key."""
        return self._database.name_of(index)

    def _parsed(self, index: int, value: bytes) -> Datum:
        try:
            datum = parse(value)
            if not datum.encoded:
                datum.pixels()
            return datum
        except ValueError as error:
            raise UsageError(f"{self.name_of(index)} is damaged: {error}") from error

    def _label(self, index: int, datum: Datum) -> int:
        if datum.label is None:
            raise UsageError(f"{self.name_of(index)} has no label; write the records with one each")
        if not 0 <= datum.label < len(self.classes):
            raise label_error(self.name_of(index), datum.label, len(self.classes))
        if datum.encoded != self._encoded:
            kinds = ("raw pixels", "an image file")
            raise UsageError(
                f"{self.name_of(index)} holds {kinds[datum.encoded]}, the first record {kinds[self._encoded]}: write "
                "all in one way"
            )
        return datum.label

    def _pixels(self, index: int, datum: Datum) -> np.ndarray:
        pixels = datum.pixels()
        if self._bgr and len(pixels) == 3:
            pixels = pixels[::-1]
        if pixels.shape == self.shape:
            return pixels
        if not self._scaled or len(pixels) != self.shape[0]:
            own, first = (" x ".join(map(str, shape)) for shape in (datum.shape, self.shape))
            remedy = "write all with the same channels" if self._scaled else "set data.size to scale all to one"
            raise UsageError(f"{self.name_of(index)} has an image of {own}, the first is of {first}: {remedy}")
        return fitted(pixels.transpose(1, 2, 0), self.shape).transpose(2, 0, 1)


def classes_of(classes: int | None, train: Callable[[], Database], root: str) -> list[str]:
    """Return the names of the classes: so many numbers, or as many as the training database's labels need."""
    return numbered(classes, lambda: train().largest_label(), f"data.root={root}")


def largest(labels: Sequence[int | None] | np.ndarray, name_of: Callable[[int], str]) -> int:
    """Return the largest label. Raises UsageError naming a record that has none, or a negative one."""
    highest = 0
    for index, label in enumerate(labels):
        if label is None:
            raise UsageError(f"{name_of(index)} has no label; write the records with one each")
        if label < 0:
            raise UsageError(f"{name_of(index)} has label {label}, expected 0 or more; leave such records out")
        highest = max(highest, int(label))
    return highest
