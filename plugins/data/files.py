"""What the file formats share: opening what the user named, and saying what is wrong with it."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from engine import UsageError


def needed(module: str, choice: str, distribution: str = "") -> Any:
    """Return an imported module; raises UsageError saying what to install where it is absent."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        name = distribution or error.name
        raise UsageError(f"data={choice} needs {name}: pip install 'conv-engine[{choice}]'") from error


def folder_at(root: str) -> Path:
    """Return ``data.root`` as a path, ``~`` expanded; raises UsageError if there is no such folder on this machine."""
    if "://" in root:
        raise UsageError(
            f"data.root={root} is an address, which only data=webdataset reads: copy it to a folder, and give that"
        )
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UsageError(f"data.root={root}: there is no such folder; give the one that holds the data")
    return path


def content(path: Path) -> bytes:
    """Return a file's bytes, unpacked where its name ends in .gz; raises UsageError naming an unreadable file."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(
            f"{path} ({len(data)} bytes) is truncated or damaged ({one_line(error)}); fetch it again"
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check data.root and its permissions") from error


def check_labels(path: Path, labels: np.ndarray, classes: int, remedy: str) -> None:
    """Raise UsageError naming the file, the first record whose label is not below ``classes``, and the label."""
    bad = np.flatnonzero(labels >= classes)
    if bad.size:
        raise UsageError(f"{path}: record {bad[0]} has label {labels[bad[0]]}, expected 0 to {classes - 1}; {remedy}")


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return the first names separated by commas, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def one_line(error: Exception) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())


def tell(text: str) -> None:
    """Print a remark on the data that is no error, apart from a command's own output."""
    print(f"data: {text}", file=sys.stderr)
