"""Large tensors in flat files: written as they come in any order of rows, read through the page cache.

A folder holds one file for each tensor (raw numbers, C order, little-endian) and ``header.json``, which names their
types, shapes and the CRC-32C of every 16 MiB. The header is written last, so a folder without it was never finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from engine.errors import RunFailed, UsageError
from engine.folder import flush, write_whole

FORMAT = 1
HEADER = "header.json"
PORTION = 16 << 20  # bytes that share a checksum
DTYPES = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNRESERVED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # from file systems that cannot reserve room

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class DamagedArrays(Exception):
    """Files that are not what their header says, or no header that can be read; the message names the file."""


def bytes_of(shapes: Shapes) -> int:
    """Return the bytes that tensors of such shapes and types take."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())


@contextmanager
def writing(folder: Path, what: str, needed: int, option: str) -> Iterator[None]:
    """Turn an OSError of the block into RunFailed: one line with the bytes that ``what`` needs.

    option: what to choose another folder with.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise RunFailed(f"{folder} cannot be written ({error.strerror}): choose another {option}") from error
        raise RunFailed(too_small(folder, what, needed, option)) from error


def require_room(folder: Path, what: str, needed: int, option: str) -> None:
    """Raise UsageError, with the bytes needed and free, if the disk that a folder is on has no room for them."""
    if needed > shutil.disk_usage(folder).free:
        raise UsageError(too_small(folder, what, needed, option))


def too_small(folder: Path, what: str, needed: int, option: str) -> str:
    """Return the line about a disk that is too small."""
    free = shutil.disk_usage(folder).free
    return f"{what} need {needed:,} bytes, and {folder} has {free:,} free: make room, or choose another {option}"


def reserve(file: int, size: int) -> None:
    """Have the disk keep room for a file, so that writing through a mapping cannot find it full. Raises OSError."""
    try:
        if size:
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in UNRESERVED:
            raise


class Growing:
    """Tensors being written into a folder, which exists; ``finish`` makes it whole. Raises OSError, as disks do."""

    def __init__(self, folder: Path, shapes: Shapes) -> None:
        self.folder, self.shapes = folder, dict(shapes)
        self.tensors = {}
        for name, (shape, dtype) in self.shapes.items():
            path = folder / f"{name}.bin"
            size = bytes_of({name: (shape, dtype)})
            with path.open("wb") as file:
                reserve(file.fileno(), size)
                file.truncate(size)
            self.tensors[name] = _mapped(path, shape, dtype, writes=True)

    @property
    def bytes(self) -> int:
        """What the tensors take."""
        return bytes_of(self.shapes)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Have all of it on the disk, checksums and ``facts`` with it."""
        arrays = {}
        for name, tensor in self.tensors.items():
            path = self.folder / f"{name}.bin"
            flush(path)
            shape, dtype = self.shapes[name]
            arrays[name] = {"dtype": str(dtype), "shape": list(shape), "crc32c": _checksums(tensor)}
        content = json.loads(json.dumps({"format": FORMAT, "arrays": arrays, "facts": facts}))
        content["checksum"] = _digest(content)
        write_whole(self.folder / HEADER, json.dumps(content, indent=1) + "\n")
        flush(self.folder)


def opened(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a folder's tensors, mapped, and its facts, every byte verified. Raises DamagedArrays.

    What is done to the tensors stays in this process.
    """
    path = folder / HEADER
    try:
        content = json.loads(path.read_bytes())
        intact = content["checksum"] == _digest(content) and content["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedArrays(f"{path} cannot be read") from error
    if not intact:
        raise DamagedArrays(f"{path} is damaged, or of another version")
    tensors = {}
    for name, array in content["arrays"].items():
        file, shape, dtype = folder / f"{name}.bin", tuple(array["shape"]), DTYPES[array["dtype"]]
        if not file.is_file() or file.stat().st_size != bytes_of({name: (shape, dtype)}):
            raise DamagedArrays(f"{file} is missing, or not of its length")
        tensors[name] = _mapped(file, shape, dtype, writes=False)
        if _checksums(tensors[name]) != array["crc32c"]:
            raise DamagedArrays(f"{file} is damaged: its checksum does not match")
    return tensors, content["facts"]


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype, writes: bool) -> Tensor:
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    numbers = np.memmap(path, np.uint8, "r+" if writes else "c", shape=(count * dtype.itemsize,))
    return torch.from_numpy(numbers).view(dtype).view(shape)


def _checksums(tensor: Tensor) -> list[int]:
    if tensor.numel() == 0:
        return []
    data = tensor.flatten().view(torch.uint8).numpy()
    return [google_crc32c.value(data[begin : begin + PORTION]) for begin in range(0, len(data), PORTION)]


def _digest(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
