"""Finding the records of Parquet, Arrow IPC and Feather files: their labels, and where their images are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine import UsageError

from .arrow_columns import Columns, bytes_of, columns_of, labels_of, require_alike
from .files import needed, one_line
from .ranges import LocalFiles

PARQUET = ".parquet"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
REPAIR = "fetch or write it again"


@dataclass(frozen=True)
class Group:
    """Consecutive rows: the file, their number in it (row group, batch), the first one's row in it, and how many.

    first: the first one's number among all records. places: offset and length [rows, 2] of each image in the file;
    None if the group must be unpacked.
    """

    file: int
    number: int
    row: int
    rows: int
    first: int
    places: np.ndarray | None


@dataclass
class Table:
    """The records of some files, in order. columns: of each file."""

    files: LocalFiles
    columns: list[Columns] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)

    def group_of(self, index: int) -> int:
        """Return which group a record is in."""
        return bisect_right(self.groups, index, key=lambda group: group.first) - 1

    def name_of(self, index: int) -> str:
        """Return a record's file and row in it."""
        group = self.groups[self.group_of(index)]
        return f"{self.files.name(group.file)}: row {group.row + index - group.first}"


def read_table(paths: Sequence[Path], image: str | None, label: str | None) -> Table:
    """Return the records of some files; labels are read, and of uncompressed images their places.

    Raises UsageError naming a file that is missing, truncated, damaged, of another type or without records, a column
    that is missing or of another type, a row without a label, and a file whose labels are not like the first one's.
    """
    table = Table(LocalFiles(paths))
    for number, path in enumerate(paths):
        before = len(table.labels)
        with readable(str(path)):
            if path.name.lower().endswith(PARQUET):
                _add_parquet(table, number, str(path), image, label)
            else:
                _add_ipc(table, number, str(path), image, label)
        require_alike(table.columns[number], table.columns[0], str(path), str(paths[0]))
        if len(table.labels) == before:
            raise UsageError(f"{path} holds no records; {REPAIR}")
    return table


def unpacked(table: Table, group: Group) -> Any:
    """Return the images of a group, a binary array; raises UsageError naming the file if it cannot be read."""
    path, columns = table.files.name(group.file), table.columns[group.file]
    pa = needed("pyarrow", "arrow")
    with table.files.opened(group.file), readable(path):
        if path.lower().endswith(PARQUET):
            name = f"{columns.image}.bytes" if columns.struct else columns.image
            file = needed("pyarrow.parquet", "arrow").ParquetFile(path)
            chunks = file.read_row_group(group.number, columns=[name], use_threads=False).column(0).chunks
        else:
            with pa.OSFile(path) as source:
                chunks = [pa.ipc.open_file(source).get_batch(group.number).column(columns.image)]
        return pa.chunked_array([bytes_of(checked(chunk), columns) for chunk in chunks])


def checked(array: Any) -> Any:
    """Return an array whose insides agree; pyarrow raises ArrowInvalid otherwise, where reading it could crash."""
    array.validate(full=True)
    return array


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn what pyarrow says of a damaged file into a UsageError that names it."""
    pa = needed("pyarrow", "arrow")
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} cannot be read ({one_line(error)[:200]}); {REPAIR}") from error


def _add_parquet(table: Table, number: int, path: str, image: str | None, label: str | None) -> None:
    with needed("pyarrow.parquet", "arrow").ParquetFile(path) as file:
        columns = columns_of(file.schema_arrow, path, image, label)
        table.columns.append(columns)
        row = 0
        for group in range(file.num_row_groups):
            chunks = file.read_row_group(group, columns=[columns.label], use_threads=False).column(0).chunks
            row = _add(table, number, group, row, chunks, None)


def _add_ipc(table: Table, number: int, path: str, image: str | None, label: str | None) -> None:
    pa = needed("pyarrow", "arrow")
    with pa.memory_map(path) as source:  # only here: nothing is mapped once the places are known
        whole = source.read_buffer()
        batches, schema, stream = _batches(pa, whole, path)
        columns = columns_of(schema, path, image, label)
        table.columns.append(columns)
        row = 0
        for group, batch in enumerate(batches):
            places = _places(bytes_of(batch.column(columns.image), columns), whole, path)
            if places is None and stream and batch.num_rows:
                raise UsageError(f"{path} is a compressed stream, which has no random access: write it uncompressed")
            row = _add(table, number, group, row, [batch.column(columns.label)], places)


def _add(table: Table, file: int, number: int, row: int, labels: Sequence[Any], places: np.ndarray | None) -> int:
    """Note a group; return the row after it."""
    rows = sum(len(some) for some in labels)
    if rows:
        table.groups.append(Group(file, number, row, rows, len(table.labels), places))
    for some in labels:
        table.labels += labels_of(checked(some), f"{table.files.name(file)}: row", row)
        row += len(some)
    return row


def _batches(pa: Any, whole: Any, path: str) -> tuple[Iterator[Any], Any, bool]:
    """Return the batches of a file or stream, their schema, and whether it is a stream."""
    try:
        file = pa.ipc.open_file(pa.BufferReader(whole))
        return (file.get_batch(number) for number in range(file.num_record_batches)), file.schema, False
    except pa.ArrowInvalid:
        stream = pa.ipc.open_stream(pa.BufferReader(whole))
        if whole.slice(max(0, whole.size - len(END_OF_STREAM))).to_pybytes() != END_OF_STREAM:
            raise UsageError(f"{path} is truncated: it does not end as an Arrow stream does; {REPAIR}") from None
        return iter(stream), stream.schema, True


def _places(array: Any, whole: Any, path: str) -> np.ndarray | None:
    """Return offset and length of each value of a binary array within a file; None if they are not in it as they are.

    A missing value has length 0.
    """
    _, offsets, data = array.buffers()
    if len(array) == 0 or data is None or data.size == 0:
        return np.zeros((len(array), 2), np.int64)
    start = data.address - whole.address
    if not 0 <= start <= start + data.size <= whole.size:
        return None
    wide = str(array.type) == "large_binary"
    bounds = np.frombuffer(offsets, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
    bounds = bounds.astype(np.int64)
    if bounds[0] < 0 or bounds[-1] > data.size or (np.diff(bounds) < 0).any():
        raise UsageError(f"{path} is damaged: images lie outside of their batch; {REPAIR}")
    lengths = np.where(array.is_null().to_numpy(zero_copy_only=False), 0, np.diff(bounds))
    return np.stack([start + bounds[:-1], lengths], axis=1)
