"""How a store lies on the disk: its files, the description that commits it, and the arrays that say where records are.

docs/stores.md has the format byte by byte. A store is the folder of one split. ``meta.json`` is written last, so a
folder without it was never finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from engine import UsageError
from engine.folder import flush

FORMAT = 1
META = "meta.json"
WORK = ".packing"  # what is needed to go on with an interrupted packing; removed at its end
PLAN = "plan.json"
SPLITS = ("train", "test")
PIXELS, ENCODED = "pixels", "encoded"
OFFSETS, SIZES, CHECKSUMS = "offsets.u64", "sizes.u32", "checksums.u32"
TARGETS = {"i64": "labels.i64", "f32": "targets.f32", "f64": "targets.f64"}
BLOCK = 1 << 20  # bytes read at a time where a whole file is hashed
REPAIR = "pack it again, or restore it from a copy"
FEWER = "raise `ulimit -n`, or pack with a larger shard_size"


def remedy(error: Exception) -> str:
    """Return what to do about a file that could not be opened or read."""
    return FEWER if isinstance(error, OSError) and error.errno == errno.EMFILE else REPAIR


def crc32c(data: bytes | np.ndarray) -> int:
    """Return the CRC-32C (Castagnoli, RFC 3720 appendix B.4) of contiguous bytes."""
    return google_crc32c.value(data)


def view(data: bytes | np.ndarray) -> memoryview:
    """Return contiguous bytes as what files and hashes take."""
    return data.data if isinstance(data, np.ndarray) else memoryview(data)


def shard_name(number: int) -> str:
    """Return the name of a data file."""
    return f"data-{number:05d}.bin"


@dataclass(frozen=True)
class Meta:
    """What ``meta.json`` says. shape: (channels, height, width) of the packed source; targets: a key of TARGETS.

    size: the height and width of all images, None if they differ. shards: records of each data file. files: name ->
    bytes and sha256. plan: what was packed and how.
    """

    content: str
    records: int
    shape: tuple[int, int, int]
    size: Sequence[int] | None
    classes: Sequence[str]
    targets: str
    outputs: int
    shards: Sequence[int]
    files: Mapping[str, Mapping[str, Any]]
    fingerprint: str
    colour: Mapping[str, Any]
    skipped: Sequence[str]
    plan: Mapping[str, Any]

    def text(self) -> str:
        """Return the content of ``meta.json``."""
        content = {"format": FORMAT, **vars(self)}
        content = json.loads(json.dumps(content))  # as a reader will see it, for the checksum's sake
        return json.dumps({**content, "checksum": checksum(content)}, indent=1) + "\n"


@dataclass(frozen=True)
class Index:
    """Where the records are and what they should be; each array has one entry, or row, for every record.

    offsets: uint64 [n + 1], in the data files as if they were one; sizes: uint32 [n, 2], height and width; targets:
    int64 [n] or floats [n, outputs]; checksums: uint32 [n], CRC-32C of the record's bytes. firsts: int64
    [shards + 1], the first record of each data file.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    targets: np.ndarray
    checksums: np.ndarray
    firsts: np.ndarray


def checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a description's content, its own ``checksum`` left out."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def fingerprint_of(content: str, shape: Sequence[int], classes: Sequence[str], files: Mapping[str, Any]) -> str:
    """Return what changes when the records do: a hash over the classes and the hashes of all files."""
    facts = [content, list(shape), list(classes), sorted((name, file["sha256"]) for name, file in files.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def put(path: Path, data: bytes) -> None:
    """Replace a file's content at once and on the disk: a crash leaves the old or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)  # there only after a failure


def read_meta(folder: Path) -> Meta:
    """Return a store's description. Raises UsageError if it is missing, altered, unfinished or of another version."""
    path = folder / META
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(_unfinished(folder)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read ({reason}); {remedy(error)}") from error
    if not isinstance(content, dict) or content.get("checksum") != checksum(content):
        raise UsageError(f"{path} was altered: its checksum does not match; {REPAIR}")
    if content.get("format") != FORMAT:
        raise UsageError(
            f"{path} has format {content.get('format')}, this engine reads {FORMAT}: pack it again, or use the engine "
            "that wrote it"
        )
    try:
        facts = {name: content[name] for name in Meta.__dataclass_fields__}
    except KeyError as error:
        raise UsageError(f"{path} has no {error}: another program wrote it; pack it again") from error
    if facts["fingerprint"] != fingerprint_of(*(facts[name] for name in ("content", "shape", "classes", "files"))):
        raise UsageError(f"{path} was altered: its fingerprint does not fit the files' checksums; {REPAIR}")
    return Meta(**{**facts, "shape": tuple(facts["shape"])})


def _unfinished(folder: Path) -> str:
    if (folder / WORK).is_dir():
        return f"{folder} is an unfinished store: give the same engine pack command again, it goes on where it ended"
    return f"{folder} is no store: it has no {META}; engine pack writes one"


def require_length(path: Path, expected: int, found: int) -> None:
    """Raise UsageError naming a file that is shorter or longer than it was written."""
    if found != expected:
        how = "truncated" if found < expected else "altered"
        raise UsageError(f"{path} has {found} bytes instead of {expected}: it is {how}; {REPAIR}")


def read_index(folder: Path, meta: Meta) -> Index:
    """Return a store's arrays, checked against their hashes, the data files' lengths and the classes.

    Raises UsageError naming the file that is missing, truncated, altered or at odds with the others.
    """
    kind, count = meta.targets, meta.records
    offsets = _array(folder, meta, OFFSETS, "<u8", (count + 1,))
    sizes = _array(folder, meta, SIZES, "<u4", (count, 2))
    checksums = _array(folder, meta, CHECKSUMS, "<u4", (count,))
    targets = _array(
        folder, meta, TARGETS[kind], f"<{kind[0]}{int(kind[1:]) // 8}", (count, meta.outputs)[: 1 + (kind != "i64")]
    )
    firsts = np.concatenate([[0], np.cumsum(meta.shards, dtype=np.int64)])
    lengths = [meta.files[shard_name(number)]["bytes"] for number in range(len(meta.shards))]
    expected = np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)])
    if firsts[-1] != count or not (offsets[1:] >= offsets[:-1]).all() or not (offsets[firsts] == expected).all():
        raise UsageError(f"{folder / OFFSETS} does not fit the data files; {REPAIR}")
    if meta.content == PIXELS:
        held = sizes[:, 0].astype(np.uint64) * sizes[:, 1] * np.uint64(meta.shape[0])
        if not (np.diff(offsets) == held).all():
            raise UsageError(f"{folder / SIZES} does not fit {OFFSETS}; {REPAIR}")
    if kind == "i64" and count and not (targets.min() >= 0 and targets.max() < len(meta.classes)):
        bad = int(np.flatnonzero((targets < 0) | (targets >= len(meta.classes)))[0])
        raise UsageError(
            f"{folder / TARGETS[kind]}: record {bad} has label {targets[bad]}, expected 0 to {len(meta.classes) - 1}; "
            f"{REPAIR}"
        )
    return Index(offsets, sizes, targets, checksums, firsts)


def _array(folder: Path, meta: Meta, name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); {remedy(error)}") from error
    require_length(path, int(np.prod(shape)) * np.dtype(kind).itemsize, len(data))
    if hashlib.sha256(data).hexdigest() != meta.files[name]["sha256"]:
        raise UsageError(f"{path} was altered: its checksum does not match; {REPAIR}")
    return np.frombuffer(data, kind).reshape(shape)
