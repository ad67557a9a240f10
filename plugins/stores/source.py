"""Reading a store: positioned reads into memory of our own, so that no file's fate can end the process.

A mapping of a file that somebody truncates kills with SIGBUS whoever touches it; a read returns fewer bytes, which is
an error like any other. All processes share the system's cache of the files; what each has for itself is the arrays
of 28 bytes for a record.
"""

from __future__ import annotations

import os
import resource
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine import UsageError
from engine.decode import fit
from engine.interfaces import Pictures, Records, Source
from engine.pictures import ADDRESS, BYTES, CHECKSUM, ENCODING, FILE, HEIGHT, INTERLEAVED, OFFSET, UNCHECKED

from .layout import (
    ENCODED,
    META,
    REPAIR,
    SPLITS,
    Index,
    Meta,
    crc32c,
    read_index,
    read_meta,
    remedy,
    require_length,
    shard_name,
    view,
)

SPARE = 256  # open files that a store leaves to the rest of the process


class StoreSource(Source):
    """Gives the records of a store, each checked against its checksum; safe to ask from any number of threads.

    Encoded records are files' bytes. Pixels are given as they are where they have the size of ``shape``, else scaled so
    that they just cover it and cropped to the middle, as data=folder does.
    """

    def __init__(self, folder: Path, meta: Meta, index: Index, shape: tuple[int, int, int], check: bool) -> None:
        self.classes, self.shape, self.fingerprint = tuple(meta.classes), shape, meta.fingerprint
        self.colour = meta.colour
        targets = index.targets.copy()  # torch has no tensors that cannot be written; the others go
        self._folder, self._meta, self._index, self._check = folder, meta, replace(index, targets=targets), check
        self._targets = torch.from_numpy(targets)
        self._firsts = index.firsts.tolist()
        self._files = _opened(folder, meta)
        weakref.finalize(self, _close, self._files)

    def __len__(self) -> int:
        return self._meta.records

    def records(self, indices: Sequence[int]) -> Records:
        """Return the records at ``indices``. Raises UsageError naming store, file and record if one is damaged."""
        rows = np.asarray(indices, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"{self._folder} has records 0 to {len(self) - 1}, asked for {rows.min()} to {rows.max()}")
        targets = self._targets[torch.from_numpy(rows)]
        if self._meta.content == ENCODED:
            return Records("encoded", [self._read(row, row + 1).tobytes() for row in rows.tolist()], targets)
        channels, height, width = self.shape
        images = np.empty((len(rows), height, width, channels), np.uint8)
        for place, row, count in self._runs(rows):
            if count:
                self._read(row, row + count, images[place : place + count])
                continue
            own = (*self._index.sizes[row].tolist(), channels)
            images[place] = fit(self._read(row, row + 1).reshape(own), (height, width))
        return Records("raw", torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), targets)

    def pictures(self, indices: Tensor) -> tuple[Pictures, Tensor] | None:
        """Return where pixels are in the data files, with their checksums; None for encoded records."""
        if self._meta.content == ENCODED or self.shape[0] not in (1, 3):
            return None
        index, rows = self._index, indices.numpy()
        shards = np.searchsorted(index.firsts, rows, "right") - 1
        table = np.empty((len(rows), 8), np.int64)
        table[:, ADDRESS] = 0
        table[:, FILE] = np.asarray(self._files)[shards]
        table[:, OFFSET] = index.offsets[rows] - index.offsets[index.firsts[shards]]
        table[:, BYTES] = index.offsets[rows + 1] - index.offsets[rows]
        table[:, CHECKSUM] = index.checksums[rows] if self._check else UNCHECKED
        table[:, ENCODING] = INTERLEAVED
        table[:, HEIGHT:] = index.sizes[rows]
        size = self._meta.size
        fit = size is not None and tuple(size) == self.shape[1:]
        return Pictures(torch.from_numpy(table), self.shape[0], [self], fit), self._targets[indices]

    def name_of(self, index: int) -> str:
        """Return a record's data file and number."""
        shard = bisect_right(self._firsts, index) - 1
        return f"{self._folder / shard_name(shard)}: record {index}"

    def _runs(self, rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Yield (place in rows, first record, count) of neighbours that one read gets; count 0: it has another size."""
        fits = (self._index.sizes[rows] == self.shape[1:]).all(1).tolist()
        wanted, place = rows.tolist(), 0
        while place < len(wanted):
            row, count = wanted[place], int(fits[place])
            yet = self._firsts[bisect_right(self._firsts, row)] - row  # records to the end of its data file
            while 0 < count < yet and place + count < len(wanted) and wanted[place + count] == row + count:
                if not fits[place + count]:
                    break
                count += 1
            yield place, row, count
            place += max(1, count)

    def _read(self, first: int, last: int, into: np.ndarray | None = None) -> np.ndarray:
        """Return the bytes of records ``first`` to ``last`` - 1, which lie in one data file, checked."""
        index = self._index
        shard = bisect_right(self._firsts, first) - 1
        start, end = int(index.offsets[first]), int(index.offsets[last])
        data = np.empty(end - start, np.uint8) if into is None else into.reshape(-1)
        if not read_fully(self._files[shard], data, start - int(index.offsets[self._firsts[shard]])):
            raise UsageError(f"{self.name_of(first)} cannot be read: the file was truncated while it was in use")
        if self._check:
            base = index.offsets[first]
            for row in range(first, last):
                record = data[int(index.offsets[row] - base) : int(index.offsets[row + 1] - base)]
                if crc32c(record) != index.checksums[row]:
                    raise UsageError(f"{self.name_of(row)} is damaged: its checksum does not match; {REPAIR}")
        return data


def read_fully(file: int, data: np.ndarray, offset: int) -> bool:
    """Fill ``data`` from an open file; False if the file ends before that. Raises UsageError if the disk fails."""
    rest = view(data)
    while len(rest):
        try:
            count = os.preadv(file, [rest], offset)
        except OSError as error:
            name = os.readlink(f"/proc/self/fd/{file}")
            raise UsageError(f"{name} cannot be read ({error.strerror}); {REPAIR}") from error
        if count == 0:
            return False
        rest, offset = rest[count:], offset + count
    return True


def open_store(root: str, split: str, size: int | None, check: bool) -> StoreSource:
    """Return a split of a store, its description, arrays and all files' lengths checked.

    Raises UsageError naming what is missing, truncated, altered, unfinished or of another version.
    """
    folder = folder_of(root, split)
    meta = read_meta(folder)
    index = read_index(folder, meta)
    shape = shape_of(folder, meta, size)
    if meta.content != ENCODED and shape[0] not in (1, 3) and not (index.sizes == shape[1:]).all():
        raise UsageError(f"data.size={size}: images of {shape[0]} channels can be read in their own size only")
    return StoreSource(folder, meta, index, shape, check)


def folder_of(root: str, split: str) -> Path:
    """Return the folder of a split's store. Raises UsageError if there is none."""
    base = Path(root).expanduser()
    if (base / split).is_dir():
        return base / split
    if not base.is_dir():
        raise UsageError(f"data.root={root}: there is no such folder; give the one that engine pack wrote")
    if (base / META).is_file():
        raise UsageError(f"data.root={root} is the store of one split: give the folder that holds it")
    raise UsageError(f"data.root={root} has no folder {split}; give the one that engine pack wrote, or pack that split")


def shape_of(folder: Path, meta: Meta, size: int | None) -> tuple[int, int, int]:
    """Return the shape that images are read in: ``size``, or else their own if all of both splits have one.

    Otherwise it is the packed source's.
    """
    channels, height, width = meta.shape
    if size is not None:
        return channels, size, size
    others = [read_meta(other) for split in SPLITS if (other := folder.parent / split) != folder and other.is_dir()]
    if meta.content != ENCODED and meta.size is not None and all(other.size == meta.size for other in others):
        height, width = meta.size
    return channels, height, width


def _opened(folder: Path, meta: Meta) -> list[int]:
    """Return a descriptor of every data file, of the length it should have."""
    files: list[int] = []
    _allow_files(len(meta.shards))
    try:
        for number in range(len(meta.shards)):
            path = folder / shard_name(number)
            try:
                files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                raise UsageError(f"{path} cannot be opened ({error.strerror}); {remedy(error)}") from error
            require_length(path, meta.files[path.name]["bytes"], os.fstat(files[-1]).st_size)
    except UsageError:
        _close(files)
        raise
    return files


def _allow_files(count: int) -> None:
    """Raise this process's limit of open files, as far as it may, if ``count`` more would leave few to others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:  # that takes a file, too: the limit is reached
        used = soft
    wanted = used + count + SPARE
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
