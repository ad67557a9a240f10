"""Where an exported file goes: looked at before anything is computed, and filled once the file has been checked."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from engine import UsageError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within ``with``, what the system cannot write is a UsageError that names the user's path."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"out={path} cannot be written ({error.strerror or error}): choose another out=") from error


def require_writable(path: Path) -> None:
    """Raise UsageError unless a file can be made in the path's folder, or in the nearest that is there; make none."""
    with naming(path):
        folder = next(each for each in path.absolute().parents if each.exists())
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder")
        with TemporaryFile(dir=folder):
            pass


@contextmanager
def beside(path: Path, suffix: str) -> Iterator[Path]:
    """Give a name in the path's folder, which is made; what is written there gets its place unless something fails."""
    before = path.with_name(f".{path.stem}.unchecked{suffix}")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield before
        with naming(path):
            before.replace(path)
    finally:
        with suppress(OSError):  # there only after a failure, which is what to tell of
            before.unlink()
