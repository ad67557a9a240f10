"""What is kept of tables stored in compressed pieces: row groups of Parquet, compressed batches of Arrow IPC."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

from engine import UsageError

from .arrow_tables import Table, unpacked


class Groups:
    """Unpacks groups when one of their rows is asked for, and keeps the last used ones, up to ``limit`` bytes.

    Threads that want different groups unpack at once; those that want the same one wait for it.
    """

    def __init__(self, table: Table, limit: int) -> None:
        self._table, self._limit = table, limit
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._bytes = 0
        self._lock, self._locks = Lock(), [Lock() for _ in table.groups]

    def values(self, number: int, rows: Sequence[int]) -> list[bytes | None]:
        """Return images of a group; None for one that is missing. Raises UsageError naming an unreadable file."""
        array = self._array(number)
        return [array[row].as_py() for row in rows]

    def _array(self, number: int) -> Any:
        with self._locks[number]:
            with self._lock:
                if number in self._kept:
                    self._kept.move_to_end(number)
                    return self._kept[number]
            group = self._table.groups[number]
            array = unpacked(self._table, group)
            if len(array) != group.rows:
                raise UsageError(
                    f"{self._table.files.name(group.file)} was changed while it was in use; start again with the data "
                    "as it is now"
                )
            with self._lock:
                self._kept[number] = array
                self._bytes += array.nbytes
                while self._bytes > self._limit and len(self._kept) > 1:
                    self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return array
