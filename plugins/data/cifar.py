"""CIFAR-10 and CIFAR-100 in the binary version (format: www.cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from engine import UsageError

from .files import check_labels, content, folder_at, tell
from .memory import InMemory

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
CIFAR10_FILES = 5
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def open_cifar10(root: str, split: str) -> InMemory:
    """Return a split; "train" is every data_batch_N.bin that is there, and fewer than all five are told.

    Raises UsageError naming the file that is missing, truncated or has a label outside 0..9.
    """
    folder = _holding(root, "cifar-10-batches-bin")
    paths = _batches(folder) if split == "train" else [_present(folder, "test_batch.bin")]
    images, labels = _read(paths, label_bytes=1, label_at=0, classes=10)
    if split == "train" and len(paths) < CIFAR10_FILES:
        tell(f"{len(paths)} of the {CIFAR10_FILES} training files are in {folder}: {len(images)} training images")
    return InMemory(images, labels, _names(folder / "batches.meta.txt", 10) or CIFAR10)


def open_cifar100(root: str, split: str, kind: str) -> InMemory:
    """Return a split with its "fine" (100) or "coarse" (20) classes, named by number where the names are missing.

    Raises UsageError naming the file that is missing, truncated or has a label out of range.
    """
    folder = _holding(root, "cifar-100-binary")
    classes, label_at = (100, 1) if kind == "fine" else (20, 0)
    images, labels = _read([_present(folder, f"{split}.bin")], label_bytes=2, label_at=label_at, classes=classes)
    names = _names(folder / f"{kind}_label_names.txt", classes) or [str(number) for number in range(classes)]
    return InMemory(images, labels, names)


def _read(paths: Sequence[Path], label_bytes: int, label_at: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all files' images, uint8 [n, 3, 32, 32] in red, green, blue, and int64 labels."""
    length = label_bytes + PIXELS
    parts = []
    for path in paths:
        data = content(path)
        if not data or len(data) % length:
            raise UsageError(
                f"{path} has {len(data)} bytes, which is no multiple of the {length} of a record: it is truncated or "
                "of another version; fetch it again"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, length)
        check_labels(path, records[:, label_at], classes, "fetch it again")
        parts.append(records)
    images = np.concatenate([records[:, label_bytes:] for records in parts]).reshape(-1, *SHAPE)
    labels = np.concatenate([records[:, label_at] for records in parts]).astype(np.int64)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _holding(root: str, standard: str) -> Path:
    """Return the folder of the files: the archive's own folder inside ``root`` if it is there, else ``root``."""
    folder = folder_at(root)
    return folder / standard if (folder / standard).is_dir() else folder


def _batches(folder: Path) -> list[Path]:
    numbered = {int(m[1]): p for p in folder.iterdir() if (m := re.fullmatch(r"data_batch_(\d+)\.bin", p.name))}
    return [numbered[n] for n in sorted(numbered)] or [_present(folder, "data_batch_1.bin")]


def _present(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UsageError(f"data.root={folder} has no file {name}; give the folder of CIFAR's binary version")
    return folder / name


def _names(path: Path, classes: int) -> list[str]:
    """Return the class names in a file, one a line, blank lines left out; none if there is no such file."""
    if not path.is_file():
        return []
    lines = content(path).decode("utf-8", "replace").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != classes:
        raise UsageError(f"{path} names {len(names)} classes instead of {classes}; fetch it again or delete it")
    return names
