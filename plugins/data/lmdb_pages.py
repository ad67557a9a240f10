"""Where the records of an LMDB file are (format: struct MDB_meta, MDB_page and MDB_node of liblmdb 0.9's mdb.c).

The library maps the file, so that a truncated one would end the process with SIGBUS; it opens a file once per process
only, and not again in a forked one. Reading the pages has none of this, and leaves the records to positioned reads.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine import UsageError

from .ranges import LocalFiles

MAGIC, VERSION = 0xBEEFC0DE, 1
META = struct.Struct("<II16xIHH40x4xHHQQQQQQQ")  # magic, version, page size, flags, then the main database's MDB_db
HEADER = 16  # bytes at the beginning of each page
HEADER_32 = 12  # where numbers of pages have 32 bits
BRANCH, LEAF, OVERFLOW = 1, 2, 4
BIG, SUB, DUPLICATES = 1, 2, 4
NONE = (1 << 64) - 1  # number of the page that does not exist
OTHER_ORDER = 0x02 | 0x08  # MDB_REVERSEKEY, MDB_INTEGERKEY: keys do not ascend byte by byte
DEEPEST = 32  # CURSOR_STACK of mdb.c
REPAIR = "fetch or write it again"


@dataclass(frozen=True)
class Records:
    """keys in order; offsets and lengths of the values, int64; whether each lies on pages of its own."""

    keys: list[bytes]
    offsets: np.ndarray
    lengths: np.ndarray
    big: np.ndarray
    page: int


@dataclass(frozen=True)
class Root:
    """Where the tree of the newest commit begins."""

    page: int
    number: int
    entries: int
    depth: int
    flags: int


def records_in(files: LocalFiles) -> Records:
    """Return the places of all records in the file, in the order of their keys.

    Raises UsageError naming the file, and the record or page, where it is no LMDB file, truncated or damaged, has
    several records under one key, or databases inside.
    """
    name, length = files.name(0), files.lengths[0]
    with files.opened(0) as file:
        root = _root(file, name)
        keys: list[bytes] = []
        rows: list[tuple[int, int, int]] = []
        for page_number, page in _leaves(file, root, name, length):
            for key, offset, size, flags in _nodes(page, page_number * root.page, name):
                if flags & SUB:
                    raise UsageError(f"{name}: {shown(key)} is a database of its own; give one with the records in it")
                if flags & DUPLICATES:
                    raise UsageError(f"{name}: several records have the key of {shown(key)}; write one under each")
                if flags & BIG:
                    overflow = int.from_bytes(page[offset : offset + 8], "little")
                    start = overflow * root.page + HEADER
                else:
                    start = page_number * root.page + offset
                if start + size > length:
                    raise UsageError(f"{name} is truncated: it ends at byte {length}, within {shown(key)}; {REPAIR}")
                if keys and keys[-1] >= key and not root.flags & OTHER_ORDER:
                    raise UsageError(f"{name} is damaged: {shown(key)} follows {shown(keys[-1])}; {REPAIR}")
                keys.append(key)
                rows.append((start, size, flags & BIG))
    if not keys:
        raise UsageError(f"{name} holds no records; {REPAIR}")
    if len(keys) != root.entries:
        raise UsageError(f"{name} is damaged: it has {len(keys)} records instead of {root.entries}; {REPAIR}")
    table = np.array(rows, np.int64)
    return Records(keys, table[:, 0].copy(), table[:, 1].copy(), table[:, 2].astype(bool), root.page)


def shown(key: bytes) -> str:
    """Return a key as text for a message."""
    text = key.decode("utf-8", "replace")
    return f"record {text}" if text.isprintable() else f"record 0x{key.hex()}"


def _root(file: int, name: str) -> Root:
    """Return the newer of the two commits that a file begins with."""
    found: dict[int, Root] = {}
    page = 0
    for place in (0, None):
        data = os.pread(file, HEADER + META.size, page if place is None else place)
        if len(data) < HEADER + META.size:
            raise UsageError(f"{name} has fewer bytes than an LMDB file begins with; {REPAIR}")
        magic, version, page_size, _, _, flags, depth, *counts = META.unpack_from(data, HEADER)
        _, _, _, entries, root, _, commit = counts
        if magic != MAGIC:
            raise UsageError(f"{name} {_other(data)}")
        if version != VERSION:
            raise UsageError(
                f"{name} is of version {version} of the LMDB format: {VERSION} can be read; write it again"
            )
        if page_size & (page_size - 1) or not 256 <= page_size <= 65536:
            raise UsageError(f"{name} is damaged: it says that its pages have {page_size} bytes; {REPAIR}")
        page = page_size
        found[commit] = Root(page_size, root, entries, depth, flags)
    return found[max(found)]


def _other(data: bytes) -> str:
    """Return what a file is whose first or second page does not begin as one of a 64-bit little-endian machine."""
    for place, width in ((HEADER, 64), (HEADER_32, 32)):
        for order in ("little", "big"):
            if data[place : place + 4] == MAGIC.to_bytes(4, order):
                return f"is an LMDB file of a {width}-bit {order}-endian machine; write it on a 64-bit PC"
    return "is no LMDB file (it begins with other bytes); check data.root"


def _leaves(file: int, root: Root, name: str, length: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of the leaf pages, in the order of their keys."""
    waiting = [] if root.number == NONE else [(root.number, 1)]
    while waiting:
        number, depth = waiting.pop()
        page = os.pread(file, root.page, number * root.page) if number * root.page < length else b""
        if len(page) < root.page:
            raise UsageError(f"{name} is truncated: its page {number} is missing; {REPAIR}")
        own, _, kind = struct.unpack_from("<QHH", page)
        if own != number or not kind & (BRANCH | LEAF) or depth > min(root.depth, DEEPEST):
            raise UsageError(f"{name} is damaged: its page {number} is not what it should be; {REPAIR}")
        if kind & LEAF:
            yield number, page
            continue
        waiting += [(child, depth + 1) for child in reversed([_child(page, place) for place in _places(page, name)])]


def _places(page: bytes, name: str) -> tuple[int, ...]:
    """Return where in a page its nodes begin."""
    (lower,) = struct.unpack_from("<H", page, 12)
    count = (lower - HEADER) // 2
    places = struct.unpack_from(f"<{count}H", page, HEADER) if 0 <= lower - HEADER <= len(page) - HEADER else (0,)
    if any(not lower <= place <= len(page) - 8 for place in places):
        raise UsageError(f"{name} is damaged: a page points outside of itself; {REPAIR}")
    return places


def _child(page: bytes, place: int) -> int:
    low, high, top = struct.unpack_from("<HHH", page, place)
    return low | high << 16 | top << 32


def _nodes(page: bytes, start: int, name: str) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield key, place in the page of the value or of the number of its page, length of the value, and flags."""
    for place in _places(page, name):
        low, high, flags, key_size = struct.unpack_from("<HHHH", page, place)
        offset, size = place + 8 + key_size, low | high << 16
        if offset + (8 if flags & BIG else size) > len(page):
            raise UsageError(f"{name} is damaged: a record of the page at byte {start} exceeds it; {REPAIR}")
        yield page[place + 8 : offset], offset, size, flags
