"""Writing the store of one split: data file after data file, each finished for good, the description last.

A data file is finished once its part of the index lies beside it in ``.packing/``. Whatever ends the process, the next
call goes on with the first data file that is not finished; and as a file's content depends on the source alone, the
store is the same to the byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import RunFailed, UsageError
from engine.folder import flush
from engine.interfaces import Source
from engine.loader import prefetched

from . import layout
from .colour import Colour
from .recipe import Prepared, Recipe

MOST_SHARDS = 256  # a reader keeps all data files open
PORTION = 4 << 20  # bytes that a thread prepares at a time, about
MOST_AT_ONCE = 1024  # records of a portion
DIGEST = 32  # bytes at the end of what ``_packed`` gives
COMPARED = 64  # records of a finished data file that are compared with the source before going on

_Fact = tuple[int, tuple[int, ...], bytes]  # a record's CRC-32C, size and target


@dataclass(frozen=True)
class Packing:
    """The packing of a source into ``folder``; ``plan`` says what and how, so that a later call knows it again."""

    folder: Path
    source: Source
    recipe: Recipe
    plan: dict[str, Any]
    per_shard: int
    portion: int

    @classmethod
    def begin(cls, folder: Path, source: Source, recipe: Recipe, shard_size: int) -> Packing | None:
        """Return the packing to do, or to go on with; None if the store is there already.

        shard_size: bytes of a data file, about. Raises UsageError, changing nothing, if the folder holds the store, or
        part of the store, of something else.
        """
        plan = {
            "source": source.fingerprint, "records": len(source), "shape": list(source.shape),
            "classes": list(source.classes), **vars(recipe), "shard_size": shard_size,
        }  # fmt: skip
        if (folder / layout.META).exists():
            if layout.read_meta(folder).plan != json.loads(json.dumps(plan)):
                raise UsageError(f"{folder} holds a store of other data or options: delete it, or choose another out=")
            shutil.rmtree(folder / layout.WORK, ignore_errors=True)  # there if the last act was interrupted
            return None
        known = _plan_in(folder)
        if known is None and folder.exists() and any(path.name != layout.WORK for path in folder.iterdir()):
            raise UsageError(f"{folder} holds files that are no store: choose another out=")
        each = recipe.bytes_each(source)
        per_shard = max(1, shard_size // each, -(-len(source) // MOST_SHARDS))
        plan = json.loads(json.dumps({**plan, "per_shard": per_shard}))
        if known is None:
            with writing(folder):
                (folder / layout.WORK).mkdir(parents=True, exist_ok=True)
                layout.put(folder / layout.WORK / layout.PLAN, json.dumps(plan).encode())
                _flush_names(folder)
        elif known != plan:
            raise UsageError(
                f"{folder} holds the unfinished store of other data or options: delete it, or choose another out="
            )
        plan.pop("per_shard")
        return cls(folder, source, recipe, plan, per_shard, max(1, min(MOST_AT_ONCE, PORTION // each)))

    @property
    def shards(self) -> int:
        """How many data files there will be."""
        return -(-len(self.source) // self.per_shard)

    def finished(self) -> list[int]:
        """Return the numbers of the data files that are finished."""
        return [number for number in range(self.shards) if self._is_finished(number)]

    def _is_finished(self, number: int) -> bool:
        path = self.folder / layout.shard_name(number)
        if not self._part(number).exists() or not path.exists():
            return False
        part = _unpacked(self._part(number))
        return path.stat().st_size == int(part["bytes"])

    def records_of(self, number: int) -> range:
        """Return which of the source's records a data file is made from."""
        return range(number * self.per_shard, min(len(self.source), (number + 1) * self.per_shard))

    def require_same(self, numbers: Sequence[int], threads: int) -> None:
        """Raise UsageError if the source no longer gives what these finished data files were made from.

        Compared are COMPARED records of each, evenly spread: bytes (by their CRC-32C), size and target.
        """
        portions: list[list[int]] = []
        for number in numbers:
            records = self.records_of(number)
            count = min(COMPARED, len(records))
            spread = [records[(len(records) - 1) * place // max(1, count - 1)] for place in range(count)]
            portions.extend(spread[first : first + self.portion] for first in range(0, count, self.portion))
        part, number = {}, -1
        prepared = prefetched(partial(self.recipe.prepare, self.source), portions, threads, 2 * threads)
        for (some, _), portion in zip(prepared, portions, strict=True):
            if number != portion[0] // self.per_shard:
                number = portion[0] // self.per_shard
                part = _unpacked(self._part(number))
            rows = np.isin(part["records"], portion)
            held = _facts(*(part[name][rows] for name in ("records", "checksums", "sizes", "targets")))
            given = _facts(some.records, some.checksums, some.sizes, [target.numpy() for target in some.targets])
            for record in portion:
                if held.get(record) != given.get(record):
                    raise UsageError(
                        f"{self.folder} was begun with other data: {self.source.name_of(record)} has changed since it "
                        "was packed; delete the folder, or choose another out="
                    )

    def write_shard(self, number: int, threads: int, advance: Callable[[int], None]) -> None:
        """Write a data file, then its part of the index; ``advance`` is told of records as they are written.

        Raises RunFailed if the disk takes no more; the data files before are kept.
        """
        path, records = self.folder / layout.shard_name(number), self.records_of(number)
        portions = [records[first : first + self.portion] for first in range(0, len(records), self.portion)]
        digest, done = hashlib.sha256(), []
        prepared = prefetched(partial(self.recipe.prepare, self.source), portions, threads, 2 * threads)
        try:
            with writing(self.folder):
                if self._part(number).exists():  # its data file was lost; it must not vouch for half of the new one
                    self._part(number).unlink()
                    flush(self._part(number).parent)
                file = path.open("wb", buffering=0)  # closing a buffered one on a full disk would fail once more
            with file:
                for (some, _), portion in zip(prepared, portions, strict=True):
                    data = b"".join(map(layout.view, some.payloads))
                    some.payloads.clear()
                    digest.update(data)
                    with writing(self.folder):
                        _write_fully(file, data)
                    done.append(some)
                    advance(len(portion))
                with writing(self.folder):
                    os.fsync(file.fileno())
            with writing(self.folder):
                layout.put(self._part(number), _packed(done, digest.hexdigest(), path.stat().st_size))
        except RunFailed:
            path.unlink(missing_ok=True)  # leaves room for whoever goes on
            raise

    @property
    def refused(self) -> list[str]:
        """What the source itself left out when it was opened, each with the reason, where it keeps a list of it."""
        return list(getattr(self.source, "skipped", ()))

    def faults(self) -> list[str]:
        """Return the source's images that were left out, each with the reason."""
        return [fault for number in self.finished() for fault in _unpacked(self._part(number))["faults"].tolist()]

    def commit(self) -> layout.Meta:
        """Join the parts of the index and write the description, which makes the folder a store; return it.

        Raises UsageError if no image was readable, RunFailed if the disk takes no more.
        """
        parts = [_unpacked(self._part(number)) for number in range(self.shards)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in ("lengths", "sizes", "checksums")}
        if len(joined["lengths"]) == 0:
            raise UsageError(f"{self.folder.name}: none of the {len(self.source)} images can be decoded")
        targets = np.concatenate([part["targets"] for part in parts if len(part["targets"])])
        kind = f"{targets.dtype.kind}{8 * targets.dtype.itemsize}"
        arrays = {
            layout.OFFSETS: np.concatenate([[0], np.cumsum(joined["lengths"])]).astype("<u8"),
            layout.SIZES: joined["sizes"].astype("<u4"),
            layout.CHECKSUMS: joined["checksums"].astype("<u4"),
            layout.TARGETS[kind]: targets.astype(targets.dtype.newbyteorder("<")),
        }
        files = {
            layout.shard_name(number): {"bytes": int(part["bytes"]), "sha256": str(part["sha256"])}
            for number, part in enumerate(parts)
        }
        colour = Colour.none(self.source.shape[0])
        for part in parts:
            colour.join(Colour(int(part["pixels"]), part["sums"], part["products"]))
        with writing(self.folder):
            for name, array in arrays.items():
                data = array.tobytes()
                layout.put(self.folder / name, data)
                files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            meta = layout.Meta(
                content=self.recipe.content,
                records=len(joined["lengths"]),
                shape=self.source.shape,
                size=joined["sizes"][0].tolist() if (joined["sizes"] == joined["sizes"][0]).all() else None,
                classes=list(self.source.classes),
                targets=kind,
                outputs=1 if targets.ndim == 1 else targets.shape[1],
                shards=[len(part["lengths"]) for part in parts],
                files=files,
                fingerprint=layout.fingerprint_of(
                    self.recipe.content, self.source.shape, self.source.classes, files
                ),
                colour=colour.facts(),
                skipped=[*self.refused, *self.faults()],
                plan=self.plan,
            )  # fmt: skip
            layout.put(self.folder / layout.META, meta.text().encode())
            _flush_names(self.folder)
        shutil.rmtree(self.folder / layout.WORK)
        return meta

    def _part(self, number: int) -> Path:
        return self.folder / layout.WORK / f"{number:05d}.npz"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an OSError of the block (a full disk) into RunFailed, one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise RunFailed(
            f"{folder} cannot be written ({error.strerror or error}): make room and give the command again, which goes "
            "on after the last finished data file"
        ) from error


def _write_fully(file: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while len(rest):
        rest = rest[file.write(rest) :]


def _flush_names(folder: Path) -> None:
    """Have the names of what is in a split's folder, of the folder and of that around it written to the disk."""
    flush(folder)
    flush(folder.parent)
    with suppress(PermissionError):  # who may not read the folder around ``out`` did not make ``out`` in it
        flush(folder.parent.parent)


def _facts(records: Any, checksums: Any, sizes: Any, targets: Any) -> dict[int, _Fact]:
    """Return what tells a record from another, by its number in the source."""
    rows = zip(records, checksums, sizes, targets, strict=True)
    return {
        int(record): (int(checksum), tuple(map(int, size)), np.asarray(target).tobytes())
        for record, checksum, size, target in rows
    }


def _plan_in(folder: Path) -> Any:
    """Return the plan of an interrupted packing; None if there is none."""
    path = folder / layout.WORK / layout.PLAN
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: delete {folder}, or choose another out=") from error


def _packed(done: Sequence[Prepared], sha256: str, size: int) -> bytes:
    """Return the facts of a data file's records as a .npz, and its SHA-256 behind it."""
    colour = Colour.none(len(done[0].colour.sums))
    for some in done:
        colour.join(some.colour)
    targets = [target for some in done for target in some.targets]
    records = [record for some in done for record in some.records]
    lengths = [length for some in done for length in some.lengths]
    content = io.BytesIO()
    np.savez(
        content,
        records=np.array(records, np.int64),
        lengths=np.array(lengths, np.uint64),
        sizes=np.array([size for some in done for size in some.sizes], np.uint32).reshape(-1, 2),
        checksums=np.array([value for some in done for value in some.checksums], np.uint32),
        targets=torch.stack(targets).numpy() if targets else np.empty(0),
        faults=np.array([fault for some in done for fault in some.faults], np.str_),
        pixels=colour.pixels,
        sums=colour.sums,
        products=colour.products,
        sha256=sha256,
        bytes=size,
    )
    data = content.getvalue()
    return data + hashlib.sha256(data).digest()


def _unpacked(path: Path) -> dict[str, np.ndarray]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); {layout.remedy(error)}") from error
    data, digest = content[:-DIGEST], content[-DIGEST:]
    if hashlib.sha256(data).digest() != digest:  # before its content is made anything of: zip files may say anything
        raise UsageError(f"{path} is damaged: delete it, and its data file will be packed again")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)
