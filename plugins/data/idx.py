"""The IDX files of MNIST and its relatives (format: yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch

from engine import UsageError

from .files import check_labels, content, folder_at
from .memory import InMemory

UNSIGNED_BYTE = 0x08
PREFIX = {"train": "train", "test": "t10k"}


def open_idx(root: str, split: str, classes: int) -> InMemory:
    """Return a split with its images as they are stored, one channel.

    Raises UsageError naming the file that is missing, truncated, of another type or at odds with its fellow, or
    that has a label outside 0..``classes`` - 1 (then with the record).
    """
    folder = folder_at(root)
    images_path = _find(folder, f"{PREFIX[split]}-images", 3)
    labels_path = _find(folder, f"{PREFIX[split]}-labels", 1)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise UsageError(
            f"{images_path} has {len(images)} images but {labels_path} has {len(labels)} labels; fetch both again"
        )
    check_labels(labels_path, labels, classes, "set data.classes if there are more classes")
    return InMemory(
        torch.from_numpy(images[:, None].copy()),
        torch.from_numpy(labels.astype(np.int64)),
        [str(number) for number in range(classes)],
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the unsigned bytes of an IDX file, shaped as its header says.

    Raises UsageError naming the file unless it has so many dimensions, none of them 0, and exactly the bytes that
    its header announces.
    """
    data = content(path)
    magic, header = bytes((0, 0, UNSIGNED_BYTE, dimensions)), 4 + 4 * dimensions
    if len(data) < header:
        raise UsageError(f"{path} has {len(data)} bytes, fewer than an IDX header's {header}; fetch it again")
    if data[:4] != magic:
        raise UsageError(
            f"{path} begins with 0x{data[:4].hex()} instead of 0x{magic.hex()}: it is no IDX file of unsigned bytes "
            f"in {dimensions} dimension{'s' * (dimensions > 1)}; check that its name is right"
        )
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    if 0 in shape:
        raise UsageError(f"{path} holds nothing: its header announces {_times(shape)} values; fetch it again")
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise UsageError(
            f"{path} has {len(data)} bytes{' unpacked' * (path.suffix == '.gz')} instead of the {expected} that its "
            f"header announces ({_times(shape)} values); fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    """Return the one of the names in use (``-idx3`` or ``.idx3``, plain or .gz) that is there."""
    names = [f"{stem}{joint}idx{dimensions}-ubyte{end}" for end in ("", ".gz") for joint in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"data.root={folder} has no file {names[0]}, plain or .gz; give the folder of the IDX files")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)
