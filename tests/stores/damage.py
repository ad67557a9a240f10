"""Ways to damage a store's files, and an image file of a folder; each returns the names that a refusal must have."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.plugins.stores import layout

ARRAYS = (layout.OFFSETS, layout.SIZES, layout.TARGETS["i64"], layout.CHECKSUMS)
LABELS = layout.TARGETS["i64"]
LEVELS = ("left alone", "hash made to fit", "description made to fit", "fingerprint made to fit")
"""How far whoever altered an array goes on to make the store's checksums fit it."""

Act = Callable[[Path, random.Random], set[str]]


def flipped_byte(path: Path, drawn: random.Random) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[drawn.randrange(len(data))] ^= drawn.randrange(1, 256)
    path.write_bytes(data)


def cut_short(path: Path, drawn: random.Random) -> None:
    """Leave a file's beginning."""
    data = path.read_bytes()
    path.write_bytes(data[: drawn.randrange(len(data))])


def lost_block(path: Path, drawn: random.Random) -> None:
    """Set up to 512 bytes that lie together to zero, as a disk does with a sector that it cannot read."""
    data = bytearray(path.read_bytes())
    begin = drawn.randrange(len(data))
    data[begin : begin + 512] = bytes(len(data[begin : begin + 512]))
    path.write_bytes(data)


def grown(path: Path, drawn: random.Random) -> None:
    """Write more to the end of a file."""
    with path.open("ab") as file:
        file.write(drawn.randbytes(drawn.randrange(1, 100)))


def removed(path: Path, drawn: random.Random) -> None:
    """Delete a file."""
    path.unlink()


def of_data(act: Callable[[Path, random.Random], None]) -> Act:
    """Do something to one of a store's data files."""

    def one(folder: Path, drawn: random.Random) -> set[str]:
        path = drawn.choice(sorted(folder.glob("data-*")))
        act(path, drawn)
        return {path.name}

    return one


def of_arrays(act: Callable[[Path, random.Random], None]) -> Act:
    """Do something to one of a store's arrays."""

    def one(folder: Path, drawn: random.Random) -> set[str]:
        name = drawn.choice(ARRAYS)
        act(folder / name, drawn)
        return {name}

    return one


def of_meta(act: Callable[[Path, random.Random], None]) -> Act:
    """Do something to a store's description."""

    def one(folder: Path, drawn: random.Random) -> set[str]:
        act(folder / layout.META, drawn)
        return {layout.META}

    return one


def exchanged(folder: Path, drawn: random.Random) -> set[str]:
    """Give two data files each other's names."""
    one, other = drawn.sample(sorted(folder.glob("data-*")), 2)
    aside = folder.with_name("aside")
    for old, new in ((one, aside), (other, one), (aside, other)):
        shutil.move(old, new)
    return {one.name, other.name}


def misplaced(folder: Path, drawn: random.Random) -> set[str]:
    """Write a record over the beginning of another one."""
    index = layout.read_index(folder, layout.read_meta(folder))
    offsets, firsts = index.offsets.astype(int), index.firsts
    shard = drawn.randrange(len(firsts) - 1)
    one, other = drawn.sample(range(int(firsts[shard]), int(firsts[shard + 1])), 2)
    path, base = folder / layout.shard_name(shard), offsets[firsts[shard]]
    data = bytearray(path.read_bytes())
    length = min(offsets[one + 1] - offsets[one], offsets[other + 1] - offsets[other])
    begins, ends = offsets[one] - base, offsets[other] - base
    data[ends : ends + length] = data[begins : begins + length]
    path.write_bytes(data)
    return {path.name}


def other_label(level: str, outside: bool = False) -> Act:
    """Give one record another label, of a class there is or (``outside``) there is not, and go on to a level."""

    def one(folder: Path, drawn: random.Random) -> set[str]:
        labels = np.fromfile(folder / LABELS, "<i8")
        classes = len(layout.read_meta(folder).classes)
        row = drawn.randrange(len(labels))
        if outside:
            labels[row] = drawn.choice([-1, classes, 1 << 40, -(1 << 63)])
        else:
            labels[row] = (labels[row] + drawn.randrange(1, classes)) % classes
        labels.tofile(folder / LABELS)
        fitted(folder, LABELS, level)
        return {LABELS, layout.META}

    return one


def photograph_cut_short(folder: Path, drawn: random.Random) -> set[str]:
    """Leave out the end of an image file, and make every checksum fit: it was damaged before it was packed."""
    index = layout.read_index(folder, layout.read_meta(folder))
    offsets, checksums, firsts = index.offsets.astype(np.int64), index.checksums.copy(), index.firsts
    row = drawn.randrange(len(checksums))
    shard = int(np.searchsorted(firsts, row, "right")) - 1
    path = folder / layout.shard_name(shard)
    data = path.read_bytes()
    begin, end = (int(offsets[place] - offsets[firsts[shard]]) for place in (row, row + 1))
    lost = drawn.randrange(1, end - begin)
    path.write_bytes(data[: end - lost] + data[end:])
    offsets[row + 1 :] -= lost
    offsets.astype("<u8").tofile(folder / layout.OFFSETS)
    checksums[row] = layout.crc32c(data[begin : end - lost])
    checksums.tofile(folder / layout.CHECKSUMS)
    for name in (path.name, layout.OFFSETS, layout.CHECKSUMS):
        fitted(folder, name, LEVELS[-1])
    return {path.name}


def fitted(folder: Path, name: str, level: str) -> None:
    """Make a description's checksums fit a file of the store that was altered, up to a level."""
    if level == LEVELS[0]:
        return
    path = folder / layout.META
    content, data = json.loads(path.read_text()), (folder / name).read_bytes()
    content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if level == LEVELS[3]:
        facts = (content[key] for key in ("content", "shape", "classes", "files"))
        content["fingerprint"] = layout.fingerprint_of(*facts)
    if level != LEVELS[1]:
        content["checksum"] = layout.checksum(content)
    path.write_text(json.dumps(content))


IMAGE_FILES: dict[str, Callable[[Path, random.Random], None]] = {
    "empty": lambda path, drawn: path.write_bytes(b"") and None,
    "no image": lambda path, drawn: path.write_bytes(drawn.choice(NO_IMAGES) + drawn.randbytes(60)) and None,
    "cut short": lambda path, drawn: cut_short(path, drawn),
    "a byte flipped": lambda path, drawn: flipped_byte(path, drawn),
}
"""What happens to an image file of a folder."""

NO_IMAGES = (
    b"<html><title>404</title></html>", b"GIF89a", b"BM", b"RIFF\x10\0\0\0WEBPVP8 ", b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n", struct.pack("<II", 42, 7), b"version https://git-lfs.github.com/spec/v1\n",
)  # fmt: skip
"""How files begin that are called .jpg and are something else, or nothing but a beginning."""
