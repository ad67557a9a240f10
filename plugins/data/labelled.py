"""What sources whose files say little about themselves share: classes, sizes and fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from engine import UsageError
from engine.decode import fit

WHOLE = 64 << 20  # bytes of records that a fingerprint covers entirely
SPREAD = 256  # records that it covers where there are more
PORTION = 1 << 20  # bytes that are read at a time for it, about
MOST_CLASSES = 100_000  # that are taken for granted where nobody says how many there are
SIDE = 224  # of image files where no size is given, as data=folder has it


def shape_of(size: int | None, channels: int) -> tuple[int, int, int]:
    """Return the shape to decode image files to; raises UsageError unless there are 1 or 3 channels."""
    if channels not in (1, 3):
        raise UsageError(f"data.channels={channels}: must be 3 (colour) or 1 (grayscale)")
    return channels, size or SIDE, size or SIDE


def numbered(classes: int | None, largest: Callable[[], int], where: str) -> list[str]:
    """Return the classes' numbers as names: as many as given, or else up to the ``largest`` label.

    Raises UsageError, beginning with ``where``, if that is so large that it is likely to be a mistake.
    """
    count = classes or largest() + 1
    if classes is None and count > MOST_CLASSES:
        raise UsageError(f"{where}: the largest label is {count - 1}; set data.classes if there are so many classes")
    return [str(number) for number in range(count)]


def as_numbers(labels: Sequence[int | str], name_of: Callable[[int], str]) -> np.ndarray:
    """Return labels as int64; raises UsageError naming the first one that does not fit."""
    try:
        return np.array(labels, np.int64)
    except OverflowError as error:
        index = next(place for place, label in enumerate(labels) if not -(1 << 63) <= int(label) < 1 << 63)
        raise UsageError(f"{name_of(index)} has label {labels[index]}, which is no class's number") from error


def check_targets(targets: np.ndarray, classes: int, name_of: Callable[[int], str]) -> None:
    """Raise UsageError naming the first record whose label is not one of 0 to ``classes`` - 1."""
    bad = np.flatnonzero((targets < 0) | (targets >= classes))
    if bad.size:
        raise label_error(name_of(int(bad[0])), int(targets[bad[0]]), classes)


def label_error(name: str, label: int, classes: int) -> UsageError:
    """Return the error for a label out of range."""
    remedy = "set data.classes if there are more" if label >= 0 else "leave such records out"
    return UsageError(f"{name} has label {label}, expected 0 to {classes - 1}; {remedy}")


def fitted(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return uint8 [height, width, 1 or 3] scaled so that it just covers ``shape``, cropped to the middle of it."""
    return image if image.shape[:2] == shape[1:] else fit(np.ascontiguousarray(image), shape[1:])


def fingerprint(facts: Iterable[object], count: int, size: int, read: Callable[[Sequence[int]], Iterable]) -> str:
    """Return a text that depends on ``facts`` (texts, numbers, arrays) and on the records that ``read`` gives.

    size: bytes of all ``count`` records. Up to 64 MiB every byte counts; of more, those of 256 evenly spread records.
    """
    digest = hashlib.blake2b(digest_size=16)
    for fact in facts:
        digest.update(fact.tobytes() if isinstance(fact, np.ndarray) else repr(fact).encode())
        digest.update(b"\0")
    for indices in _portions(count, size):
        for data in read(indices):
            digest.update(memoryview(data).cast("B") if not isinstance(data, bytes) else data)
    return digest.hexdigest()


def _portions(count: int, size: int) -> Iterator[Sequence[int]]:
    if size > WHOLE and count > SPREAD:
        yield from ([(count - 1) * place // (SPREAD - 1)] for place in range(SPREAD))
        return
    each = max(1, PORTION * count // max(1, size))
    yield from (range(first, min(first + each, count)) for first in range(0, count, each))
