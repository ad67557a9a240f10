"""Folders and files at an address (https://, s3://, gs://, memory://), through fsspec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from engine import UsageError

from .files import needed
from .per_process import PerProcess
from .ranges import Files, Place, reason


class RemoteFolder:
    """A folder at an address; raises UsageError if fsspec, or what it needs for this kind of address, is absent."""

    def __init__(self, root: str, choice: str) -> None:
        self.root = root.rstrip("/")
        self._fsspec = needed("fsspec", choice)
        self._system: PerProcess[Any] = PerProcess(self._connect)  # what connects does not outlive a fork
        self._system.get()

    def _connect(self) -> Any:
        try:
            return self._fsspec.core.url_to_fs(self.root)[0]
        except (ImportError, ValueError, OSError) as error:
            raise UsageError(f"data.root={self.root} cannot be opened ({reason(error)})") from error

    def files(self, sub: str) -> list[str]:
        """Return the names of the files in a sub-folder, sorted; none if it is absent or its kind has no listing.

        Raises UsageError with the reason where it cannot be listed: no access, no connection.
        """
        system, path = self._system.get(), self.path(sub)
        try:
            found = system.ls(path, detail=True)
        except (FileNotFoundError, NotImplementedError):
            return []
        except Exception as error:  # each system has exceptions of its own
            address = f"{self.root}/{sub}" if sub else self.root
            raise UsageError(f"{address} cannot be listed ({reason(error)}); check data.root and the access") from error
        return sorted(item["name"].rpartition("/")[2] for item in found if item.get("type") == "file")

    def path(self, name: str) -> str:
        """Return what the file system calls a file of this folder."""
        return self._system.get()._strip_protocol(f"{self.root}/{name}" if name else self.root)

    def length(self, name: str) -> int:
        """Return a file's bytes; raises UsageError naming it if it cannot be asked."""
        try:
            length = self._system.get().size(self.path(name))
        except OSError as error:
            raise UsageError(f"{self.root}/{name} cannot be read ({reason(error)}); check data.root") from error
        if not length:
            raise UsageError(f"{self.root}/{name} is empty, or its length unknown; fetch it and give the folder")
        return length

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return parts of files (name, offset, length), asked for at once where the system can."""
        if not wanted:
            return []
        paths = [self.path(name) for name, _, _ in wanted]
        starts, ends = [start for _, start, _ in wanted], [start + length for _, start, length in wanted]
        found = self._system.get().cat_ranges(paths, starts, ends, on_error="return")
        for (name, _, length), data in zip(wanted, found, strict=True):
            if isinstance(data, BaseException):
                raise UsageError(f"{self.root}/{name} cannot be read ({reason(data)}); start again") from data
            if len(data) != length:
                raise UsageError(f"{self.root}/{name} ends before the record that is asked for; fetch it again")
        return found


class RemoteFiles(Files):
    """Files of a folder at an address. Raises UsageError naming one that is missing or empty."""

    def __init__(self, folder: RemoteFolder, names: Sequence[str]) -> None:
        self._folder, self._names = folder, list(names)
        self.lengths = [folder.length(name) for name in self._names]

    def name(self, file: int) -> str:
        """Return a file's address."""
        return f"{self._folder.root}/{self._names[file]}"

    def read(self, places: Iterable[Place]) -> list[bytes]:
        """Return the bytes at ``places``."""
        return self._folder.ranges([(self._names[file], offset, length) for file, offset, length in places])
