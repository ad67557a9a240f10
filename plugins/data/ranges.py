"""Reading parts of files by their place, which needs no lock and no open handle."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np

from engine import UsageError

from .files import one_line

Place = tuple[int, int, int]  # number of the file, offset, length


class Files(Protocol):
    """Some files whose lengths are known, to be read from any thread and process."""

    lengths: Sequence[int]

    def name(self, file: int) -> str:
        """Return what to call a file in a message."""
        ...

    def read(self, places: Iterable[Place]) -> list[bytes]:
        """Return the bytes at ``places``; raises UsageError naming a file that is unreadable or was changed."""
        ...


class LocalFiles(Files):
    """Files of this machine, opened for each request, so that nothing is shared by threads or over a fork.

    A file that no longer has the length, time of change and inode that it had is refused: it was written again, and
    places found in it before mean nothing. A read past its end is an error, never a signal, as it would be in a
    mapping. Raises UsageError naming a file that is missing or empty.
    """

    def __init__(self, paths: Sequence[Path | str]) -> None:
        self._paths = [str(path) for path in paths]
        self._states = [self._state(path) for path in self._paths]
        self.lengths = [length for length, _, _ in self._states]

    def name(self, file: int) -> str:
        """Return a file's path."""
        return self._paths[file]

    def read(self, places: Iterable[Place]) -> list[bytes]:
        """Return the bytes at ``places``, each file opened once and read from its beginning to its end."""
        wanted = list(places)
        found: list[bytes] = [b""] * len(wanted)
        order = sorted(range(len(wanted)), key=wanted.__getitem__)
        for number, group in groupby(order, key=lambda place: wanted[place][0]):
            with self.opened(number) as file:
                for place in group:
                    _, offset, length = wanted[place]
                    found[place] = self._read(number, file, offset, length)
        return found

    def read_into(self, number: int, parts: Iterable[tuple[int, np.ndarray]]) -> None:
        """Fill each contiguous array with the bytes of a file from its offset on."""
        with self.opened(number) as file:
            for offset, array in parts:
                rest = memoryview(array.reshape(-1))  # type: ignore[arg-type]
                while len(rest):
                    count = os.preadv(file, [rest], offset)
                    if count == 0:
                        raise self._truncated(number)
                    rest, offset = rest[count:], offset + count

    @contextmanager
    def opened(self, number: int) -> Iterator[int]:
        """Open a file for reading, as it was; raises UsageError if it cannot be read or was written since."""
        path = self._paths[number]
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                state, before = _state_of(os.fstat(file)), self._states[number]
                if state != before:
                    sizes = f"it has {state[0]} bytes instead of {before[0]}"
                    raise UsageError(
                        f"{path} was changed while it was in use: "
                        f"{sizes if state[0] != before[0] else 'it was written again'}; start again with the data as "
                        "it is now"
                    )
                yield file
            finally:
                os.close(file)
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror}); check data.root and its permissions"
            ) from error

    def _read(self, number: int, file: int, offset: int, length: int) -> bytes:
        data = os.pread(file, length, offset)
        while len(data) < length:  # a read of more than 2 GiB returns less, and so does one past the end
            more = os.pread(file, length - len(data), offset + len(data))
            if not more:
                raise self._truncated(number)
            data += more
        return data

    def _truncated(self, number: int) -> UsageError:
        return UsageError(f"{self._paths[number]} ends before the record that is asked for; fetch it again")

    def _state(self, path: str) -> tuple[int, int, int]:
        try:
            state = _state_of(os.stat(path))
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror}); check data.root and its permissions"
            ) from error
        if state[0] == 0:
            raise UsageError(f"{path} is empty; fetch it again")
        return state


def _state_of(found: os.stat_result) -> tuple[int, int, int]:
    """Return what tells that a file was written again: its length, time of change and inode."""
    return found.st_size, found.st_mtime_ns, found.st_ino


def blocks_of(files: Files, whole: int = 64 << 20, size: int = 64 << 10, most: int = 256) -> Iterator[bytes]:
    """Yield what tells files apart: all their bytes up to ``whole`` in total, else evenly spread blocks of them."""
    total = sum(files.lengths)
    each = max(2, most // len(files.lengths))
    for number, length in enumerate(files.lengths):
        if total <= whole:
            offsets = range(0, length, size)
        else:
            offsets = range(0, length, max(size, -(-length // each)))
            yield str(length).encode()
        for offset in offsets:
            yield from files.read([(number, offset, min(size, length - offset))])


def reason(error: BaseException) -> str:
    """Return why an operation failed, in one line, whatever library said so."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, FileNotFoundError):  # fsspec's, which say no more than the path
        return "there is no such file"
    first = error.args[0] if error.args and isinstance(error.args[0], bytes) else None
    text = first.decode("utf-8", "replace") if first is not None else one_line(Exception(str(error)))
    return text or type(error).__name__
