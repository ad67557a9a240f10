"""Which files make up a LevelDB database (formats: doc/log_format.md and db/version_edit.cc of LevelDB)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine import UsageError

BLOCK = 32768
RECORD = struct.Struct("<IHB")  # checksum, length, type
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
COMPARATOR, LOG, NEXT, SEQUENCE, POINTER, DELETED, NEW, OLD_LOG = 1, 2, 3, 4, 5, 6, 7, 9
REPAIR = "fetch or write it again"


@dataclass
class Manifest:
    """tables: number to bytes of the files in use. log: number of the oldest log that is not yet in a table."""

    tables: dict[int, int] = field(default_factory=dict)
    log: int = 0


def live_files(folder: Path) -> list[Path]:
    """Return the files that LevelDB needs to open the database in ``folder``, without its lock and its diary.

    Raises UsageError naming one that is missing or has another length than was written down.
    """
    current = folder / "CURRENT"
    if not current.is_file():
        raise UsageError(f"{folder} is no LevelDB database: it has no file CURRENT; check data.root")
    manifest = folder / current.read_text(errors="replace").strip()
    if not manifest.name.startswith("MANIFEST-") or not manifest.is_file():
        raise UsageError(f"{manifest} is missing, which {current} names; {REPAIR}")
    found = read_manifest(manifest)
    logs = [path for path in folder.glob("*.log") if path.stem.isdecimal() and int(path.stem) >= found.log]
    return [current, manifest, *sorted(logs), *(_table(folder, *facts) for facts in sorted(found.tables.items()))]


def read_manifest(path: Path) -> Manifest:
    """Return what the edits in a manifest add up to; raises UsageError if it is damaged."""
    manifest = Manifest()
    try:
        for edit in _records(path.read_bytes()):
            _apply(manifest, edit)
    except (IndexError, struct.error, ValueError) as error:
        raise UsageError(f"{path} is damaged; {REPAIR}") from error
    return manifest


def _table(folder: Path, number: int, length: int) -> Path:
    for ending in (".ldb", ".sst"):
        path = folder / f"{number:06}{ending}"
        if path.is_file():
            if path.stat().st_size != length:
                raise UsageError(f"{path} has {path.stat().st_size} bytes instead of {length}: {REPAIR}")
            return path
    raise UsageError(f"{folder / f'{number:06}.ldb'} is missing; {REPAIR}")


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log, each put together from its pieces."""
    place, whole = 0, b""
    while place + RECORD.size <= len(data):
        left = BLOCK - place % BLOCK
        if left < RECORD.size:
            place += left
            continue
        _, length, kind = RECORD.unpack_from(data, place)
        piece = data[place + RECORD.size : place + RECORD.size + length]
        if kind == 0 and length == 0:
            return
        if len(piece) < length or kind not in (FULL, FIRST, MIDDLE, LAST):
            raise ValueError("a record is cut off")
        place += RECORD.size + length
        whole = piece if kind in (FULL, FIRST) else whole + piece
        if kind in (FULL, LAST):
            yield whole


def _apply(manifest: Manifest, edit: bytes) -> None:
    place = 0
    while place < len(edit):
        tag, place = _varint(edit, place)
        if tag == COMPARATOR:
            _, place = _text(edit, place)
        elif tag in (LOG, NEXT, SEQUENCE, OLD_LOG):
            number, place = _varint(edit, place)
            if tag == LOG:
                manifest.log = number
        elif tag == POINTER:
            _, place = _varint(edit, place)
            _, place = _text(edit, place)
        elif tag == DELETED:
            _, place = _varint(edit, place)
            number, place = _varint(edit, place)
            manifest.tables.pop(number, None)
        elif tag == NEW:
            _, place = _varint(edit, place)
            number, place = _varint(edit, place)
            manifest.tables[number], place = _varint(edit, place)
            _, place = _text(edit, place)
            _, place = _text(edit, place)
        else:
            raise ValueError(f"tag {tag}")


def _text(data: bytes, place: int) -> tuple[bytes, int]:
    length, place = _varint(data, place)
    if place + length > len(data):
        raise ValueError("a text is cut off")
    return data[place : place + length], place + length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
