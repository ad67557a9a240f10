"""HDF5 files: a data set of images and one of labels.

Contiguous data sets are read by their place in the file. All others (chunked, compressed, image files of variable
length) are read by h5py, which lets one thread of a process read at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import UsageError
from engine.interfaces import Records, Source

from .files import needed, one_line
from .labelled import check_targets, fingerprint, fitted, numbered, shape_of
from .per_process import PerProcess
from .ranges import LocalFiles
from .splits import names_of, one_of

ENDINGS = (".h5", ".hdf5", "")
NAMES = "class_names"  # attribute of the labels that names the classes
CHANNELS = 4  # of images, at most, to be recognised by them


class H5Images(Source):
    """Gives the rows of a data set of pixels, whatever their order in the file; safe in threads and processes.

    The fingerprint covers labels, classes and pixels, as ``labelled.fingerprint`` says.
    """

    def __init__(
        self, path: Path, name: str, offset: int | None, own: tuple[int, ...], channels_last: bool, size: int | None,
        targets: np.ndarray, classes: Sequence[str],
    ) -> None:  # fmt: skip
        self._path, self._name, self._offset, self._row = path, name, offset, own
        self._files, self._handle = LocalFiles([path]), PerProcess(partial(opened, path))
        self._channels_last, self._targets = channels_last, torch.from_numpy(targets)
        height, width, channels = own if channels_last else (*own[1:], own[0])
        self.classes, self.shape = tuple(classes), (channels, size or height, size or width)
        if self.shape[1:] != (height, width) and channels not in (1, 3):
            raise UsageError(f"data.size={size}: images of {channels} channels can be read in their own size only")
        facts = (self.classes, targets, own, channels_last)
        self.fingerprint = fingerprint(facts, len(targets), len(targets) * int(np.prod(own)), lambda i: [self._rows(i)])

    def __len__(self) -> int:
        return len(self._targets)

    def records(self, indices: Sequence[int]) -> Records:
        """Return the images at ``indices``; raises UsageError naming the file if it cannot be read any more."""
        rows = self._rows(indices)
        images = rows if self._channels_last else rows.transpose(0, 2, 3, 1)
        if images.shape[1:3] != self.shape[1:]:
            images = np.stack([fitted(image, self.shape) for image in images])
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous()
        return Records("raw", pixels, self._targets[torch.as_tensor(indices, dtype=torch.int64)])

    def name_of(self, index: int) -> str:
        """Return the file, the data set and a record's row."""
        return f"{self._path}: {self._name}[{index}]"

    def _rows(self, indices: Sequence[int]) -> np.ndarray:
        rows = np.asarray(indices, np.int64)
        images = np.empty((len(rows), *self._row), np.uint8)
        if self._offset is not None:
            each, start = int(np.prod(self._row)), self._offset
            runs = ((start + row * each, images[place : place + count]) for place, row, count in runs_of(rows))
            self._files.read_into(0, runs)
            return images
        with readable(self._path, self._name):
            data = self._handle.get()[self._name]
        step = data.chunks[0] if data.chunks else 1
        order = np.argsort(rows, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(rows[order] // step)) + 1):
            if len(group):
                first, last = int(rows[group[0]]), int(rows[group[-1]])
                images[group] = read(self._path, data, slice(first, last + 1)).reshape(-1, *self._row)[
                    rows[group] - first
                ]
        return images


class H5Files(Source):
    """Gives image files kept in a data set of variable length, through h5py; safe in threads and processes."""

    def __init__(
        self, path: Path, name: str, targets: np.ndarray, classes: Sequence[str], shape: tuple[int, int, int]
    ) -> None:
        self.classes, self.shape = tuple(classes), shape
        self._path, self._name, self._targets = path, name, torch.from_numpy(targets)
        self._handle = PerProcess(partial(opened, path))
        facts = (self.classes, targets)
        self.fingerprint = fingerprint(facts, len(targets), path.stat().st_size, self._read)

    def __len__(self) -> int:
        return len(self._targets)

    def records(self, indices: Sequence[int]) -> Records:
        """Return the files at ``indices``; raises UsageError naming the file if it cannot be read any more."""
        return Records("encoded", self._read(indices), self._targets[torch.as_tensor(indices, dtype=torch.int64)])

    def name_of(self, index: int) -> str:
        """Return the file, the data set and a record's row."""
        return f"{self._path}: {self._name}[{index}]"

    def _read(self, indices: Sequence[int]) -> list[bytes]:
        with readable(self._path, self._name):
            data = self._handle.get()[self._name]
        return [read(self._path, data, int(index)).tobytes() for index in np.asarray(indices, np.int64)]


def open_hdf5(
    root: str, split: str, train: str, test: str | None, images: str, labels: str, layout: str,
    classes: int | None, size: int | None, channels: int,
) -> Source:  # fmt: skip
    """Return a split: a file of its own, or a group of the one file that ``root`` names.

    Raises UsageError if h5py is not installed, or naming a file or data set that is missing, truncated, of another type
    or shape, and the record whose label is out of range.
    """
    needed("h5py", "hdf5")
    path, group = _located(root, split, train, test)
    trained, trained_group = (path, group) if split == "train" else _located(root, "train", train, test)
    with opened(path) as file, opened(trained) as train_file:
        targets = _targets(path, file, group + labels)
        names = _names(trained, train_file, trained_group + labels, classes)
        check_targets(targets, len(names), lambda index: f"{path}: {group}{labels}[{index}]")
        data, h5py = _data_set(path, file, group + images), needed("h5py", "hdf5")
        count = data.shape[0] if data.shape else 0
        if count != len(targets):
            raise UsageError(
                f"{path} has {count} images in {group}{images} but {len(targets)} labels in {group}{labels}"
            )
        if h5py.check_vlen_dtype(data.dtype) == np.uint8:
            return H5Files(path, data.name, targets, names, shape_of(size, channels))
        own, channels_last = _row(path, data, layout)
        offset = data.id.get_offset() if data.chunks is None and not data.is_virtual and not data.external else None
        return H5Images(path, data.name, offset, own, channels_last, size, targets, names)


def opened(path: Path) -> Any:
    """Open a file for reading; raises UsageError if it is no HDF5 file, or truncated."""
    try:
        return needed("h5py", "hdf5").File(path, "r")
    except OSError as error:
        raise UsageError(f"{path} cannot be opened ({one_line(error)}); fetch it again") from error


def read(path: Path, data: Any, rows: int | slice) -> np.ndarray:
    """Return some rows of a data set; raises UsageError naming the file, data set and row where that fails."""
    first = rows.start or 0 if isinstance(rows, slice) else rows
    with readable(path, f"{data.name}[{first}]"):
        return data[rows]


@contextmanager
def readable(path: Path, name: str) -> Iterator[None]:
    """Turn what h5py says of a damaged file, in whatever kind of exception, into a UsageError that names it."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: {name} cannot be read ({one_line(error)}); fetch it again") from error


def runs_of(rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (place in ``rows``, first row, count) of rows that follow each other."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    for start, end in zip([0, *ends], [*ends, len(rows)], strict=True):
        if end > start:
            yield int(start), int(rows[start]), int(end - start)


def _located(root: str, split: str, train: str, test: str | None) -> tuple[Path, str]:
    """Return a split's file, and the group in it with a slash after it ("" for none)."""
    names = names_of(split, train, test)
    path = Path(root).expanduser()
    if not path.is_file():
        return one_of(root, split, names, ENDINGS, Path.is_file), ""
    with opened(path) as file, readable(path, "/"):
        found = [name for name in names if name in file and not hasattr(file[name], "dtype")]
    if len(found) != 1:
        has = f"has {' and '.join(found)}" if found else f"has no group {names[0]}"
        raise UsageError(f"data.root={root} {has}; set data.{split} to the group to use")
    return path, f"{found[0]}/"


def _data_set(path: Path, file: Any, name: str) -> Any:
    there: list[str] = []
    with readable(path, name):
        data = file.get(name)
        if hasattr(data, "dtype") and data.shape is not None:
            return data
        file.visititems(lambda key, item: there.append(str(key)) if hasattr(item, "dtype") else None)
    raise UsageError(
        f"{path} has no data set {name}, but {', '.join(there[:10]) or 'none'}; set data.images and data.labels"
    )


def _targets(path: Path, file: Any, name: str) -> np.ndarray:
    data = _data_set(path, file, name)
    column = data.ndim == 2 and data.shape[1] == 1
    if data.dtype.kind not in "iu" or not (data.ndim == 1 or column):
        shape = " x ".join(map(str, data.shape))
        raise UsageError(f"{path}: {name} is {data.dtype} of shape {shape or 'none'}, expected whole numbers [n]")
    if len(data) == 0:
        raise UsageError(f"{path}: {name} is empty; write records into it")
    return read(path, data, slice(None)).reshape(-1).astype(np.int64)


def _names(path: Path, file: Any, labels: str, classes: int | None) -> list[str]:
    """Return the classes' names: those that the training labels' attribute lists, else numbers.

    Raises UsageError naming an attribute that is no list of texts, or of another length than ``classes``.
    """
    data = _data_set(path, file, labels)
    with readable(path, f"{labels}.attrs"):
        names = data.attrs.get(NAMES)
    if names is not None:
        texts = _texts(names)
        if not texts:
            raise UsageError(f"{path}: {labels} has a {NAMES} that is no list of texts; write one name for each class")
        if classes is not None and classes != len(texts):
            raise UsageError(
                f"data.classes={classes}, but {path}: {labels} has {len(texts)} {NAMES}; leave one of them out"
            )
        return texts
    return numbered(classes, lambda: max(0, int(_targets(path, file, labels).max())), f"{path}: {labels}")


def _texts(names: Any) -> list[str]:
    """Return the texts in a one-dimensional array; none if it is anything else."""
    found = names.tolist() if isinstance(names, np.ndarray) and names.ndim == 1 else []
    try:
        texts = [name.decode() if isinstance(name, bytes) else name for name in found]
    except UnicodeDecodeError:
        return []
    return texts if all(isinstance(text, str) for text in texts) else []


def _row(path: Path, data: Any, layout: str) -> tuple[tuple[int, ...], bool]:
    """Return the shape of one image, with its channels, and whether they are last."""
    shape = tuple(data.shape)
    if data.dtype != np.uint8 or len(shape) not in (3, 4) or 0 in shape:
        sides = " x ".join(map(str, shape))
        raise UsageError(
            f"{path}: {data.name} is {data.dtype} of shape {sides or 'none'}, expected uint8 [n, h, w, c], "
            "[n, c, h, w] or [n, h, w], or image files as uint8 of variable length"
        )
    if len(shape) == 3:
        return (*shape[1:], 1), True
    last, first = (1 <= sides <= CHANNELS for sides in (shape[3], shape[1]))
    if layout == "auto" and last == first:
        sides = " x ".join(map(str, shape))
        raise UsageError(f"{path}: {data.name} is {sides}, which does not tell where the channels are: set data.layout")
    return shape[1:], layout == "nhwc" or (layout == "auto" and last)
