"""Stores as large as wanted, in little time: the data files of a small one, written again and again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from engine.plugins.stores import layout


@contextmanager
def large_store(folder: Path, small: Path, size: float) -> Iterator[tuple[Path, int]]:
    """Have a store of about ``size`` bytes within ``with``, both splits the same; gives the folder and its bytes."""
    folder.mkdir()
    try:
        written = enlarged(small / "train", folder / "train", int(size))
        (folder / "test").symlink_to("train")
        yield folder, written
    finally:
        shutil.rmtree(folder)


def enlarged(small: Path, out: Path, size: int) -> int:
    """Write a store of one split with the records of ``small`` repeated, of about ``size`` bytes; return its bytes.

    ``small`` has one data file. Each copy becomes a data file of its own, really written and on the disk afterwards, so
    the new store is as any other of that size. Raises SystemExit where the disk has no room.
    """
    meta, data = layout.read_meta(small), small / layout.shard_name(0)
    index = layout.read_index(small, meta)
    each = data.stat().st_size
    count = max(1, round(size / each))
    out.mkdir(parents=True)
    if shutil.disk_usage(out).free < 1.2 * count * each:
        raise SystemExit(f"{out}: not enough room on this disk for a store of {count * each / 1e9:.1f} GB")
    files = {}
    for number in range(count):
        copy = out / layout.shard_name(number)
        shutil.copyfile(data, copy)
        layout.flush(copy)
        files[copy.name] = meta.files[data.name]
    starts = index.offsets[:-1][None] + np.arange(count, dtype=np.uint64)[:, None] * np.uint64(each)
    arrays = {
        layout.OFFSETS: np.append(starts, count * each).astype("<u8"),
        layout.SIZES: np.tile(index.sizes, (count, 1)).astype("<u4"),
        layout.CHECKSUMS: np.tile(index.checksums, count).astype("<u4"),
        layout.TARGETS[meta.targets]: np.tile(index.targets, count).astype("<i8"),
    }
    for name, array in arrays.items():
        layout.put(out / name, array.tobytes())
        files[name] = {"bytes": array.nbytes, "sha256": hashlib.sha256(array.tobytes()).hexdigest()}
    facts = {
        **vars(meta), "records": count * meta.records, "shards": [meta.records] * count, "files": files,
        "fingerprint": layout.fingerprint_of(meta.content, meta.shape, meta.classes, files),
    }  # fmt: skip
    layout.put(out / layout.META, layout.Meta(**json.loads(json.dumps(facts))).text().encode())
    return count * each
