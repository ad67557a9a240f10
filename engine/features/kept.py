"""Features by key in a cache folder: each made once, by whichever process asks first, and read by all others."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from engine.errors import UsageError
from engine.features.arrays import DamagedArrays, Growing, Shapes, bytes_of, opened, require_room, writing
from engine.folder import NO_LOCKS, flush

FOLDER = "transfer.cache_folder"


def folder_of(given: str) -> Path:
    """Return the cache folder, made if need be: ``given``, or one of the user's. UsageError if it cannot be used."""
    own = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "conv-engine" / "features"
    try:
        folder = own.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "it may not be written")
        return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        reason = "it is a file" if isinstance(error, FileExistsError) else getattr(error, "strerror", None) or error
        raise UsageError(f"transfer.cache: {own} cannot be used ({reason}): choose another {FOLDER}") from error


def kept(
    folder: Path, key: str, shapes: Shapes, what: str, facts: Mapping[str, Any], fill: Callable[[Growing], None]
) -> Mapping[str, Tensor]:
    """Return the tensors of ``key``, mapped; made by ``fill`` if they are not there, or damaged, which a line tells.

    Of several processes that ask one makes them, and the others wait. They appear as a whole or not at all. what: they
    in words. Raises UsageError or RunFailed if the disk has no room, with the bytes needed.
    """
    with locked(folder / f"{key}.lock", what) as alone:
        if (found := _known(folder / key)) is None:
            if alone:
                for left in folder.glob(f".{key}-*"):  # of a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
            _make(folder, key, shapes, what, facts, fill)
            found = opened(folder / key)[0]
    return found


def _known(place: Path) -> Mapping[str, Tensor] | None:
    """Return what is there; None if nothing is, or nothing that may be used, which is then removed."""
    if not place.exists():
        return None
    try:
        return opened(place)[0]
    except DamagedArrays as damage:
        say(f"{damage}; computed anew")
        with writing(place, "transfer.cache: features", 0, FOLDER):
            shutil.rmtree(place)
        return None


def _make(
    folder: Path, key: str, shapes: Shapes, what: str, facts: Mapping[str, Any], fill: Callable[[Growing], None]
) -> None:
    """Have the tensors made beside their place, and put there once they are whole."""
    needed = bytes_of(shapes)
    require_room(folder, f"transfer.cache: {what}", needed, FOLDER)
    partial = folder / f".{key}-{uuid4().hex}"
    try:
        with writing(folder, f"transfer.cache: {what}", needed, FOLDER):
            partial.mkdir()
            growing = Growing(partial, shapes)
        fill(growing)
        with writing(folder, f"transfer.cache: {what}", needed, FOLDER):
            growing.finish(facts)
            try:
                partial.rename(folder / key)
            except OSError:
                if not (folder / key).exists():  # else another process was quicker, where there are no locks
                    raise
            flush(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(path: Path, what: str) -> Iterator[bool]:
    """Hold a lock of all processes; give whether there is one (not on every file system)."""
    with writing(path.parent, f"transfer.cache: {what}", 0, FOLDER):
        file = path.open("a")
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that computes {what}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            yield False
            return
        yield True


def say(text: str) -> None:
    """Tell the user something, at once."""
    print(f"engine: transfer.cache: {text}", file=sys.stderr, flush=True)
