"""Whatever happens to a store's files is told by name, and no wrong pixel or label is ever given as data."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from packed import opened, pack, photographs, raw

from engine import UsageError
from engine.plugins.stores import layout, source
from engine.plugins.stores.verify import faults

FILES = ("meta.json", "offsets.u64", "sizes.u32", "labels.i64", "checksums.u32", "data-00000.bin", "data-00002.bin")


@pytest.fixture(scope="module", params=["pixels", "encoded"])
def whole(request, tmp_path_factory) -> Path:
    """A store of several data files."""
    folder = tmp_path_factory.mktemp("whole") / request.param
    if request.param == "pixels":
        pack(folder, raw(24), shard_size=6 * 192)
    else:
        pack(folder, photographs(), "encoded", shard_size=6000)
    assert (folder / "data-00002.bin").exists()
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> Callable[[], Path]:
    """Return a function that makes a fresh copy."""

    def fresh() -> Path:
        shutil.rmtree(tmp_path / "train", ignore_errors=True)
        return shutil.copytree(whole, tmp_path / "train")

    return fresh


def given(folder: Path) -> tuple[str, list[tuple[bytes, int]], list[str]]:
    """Return all that a store gives: fingerprint, each record that it does not refuse, and the refusals."""
    try:
        store = opened(folder)
    except UsageError as error:
        return "", [], [str(error)]
    records, refusals = [], []
    for index in range(len(store)):
        try:
            one = store.records([index])
        except UsageError as error:
            refusals.append(str(error))
        else:
            image = one.images[0]
            data = image if isinstance(image, bytes) else image.numpy().tobytes()
            records.append((index, data, int(one.targets[0])))
    return store.fingerprint, records, refusals


def check_fault(folder: Path, whole: Path) -> None:
    """What is given is as it was packed; the fault is named when opening or reading, and by verify."""
    fingerprint, records, refusals = given(folder)
    right_fingerprint, right, _ = given(whole)
    assert set(records) <= set(right)
    assert fingerprint in ("", right_fingerprint)
    told = list(faults(folder))
    for line in refusals + told:
        assert str(folder) in line
        assert "\n" not in line
    assert refusals
    assert told


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))


def flipped(folder: Path, whole: Path, drawn: random.Random, name: str) -> None:
    place = drawn.randrange((folder / name).stat().st_size)
    flip(folder / name, place, drawn.randrange(8))
    if name == "meta.json" and _same_meta(folder, whole):  # one kind of white space instead of another
        assert given(folder) == given(whole)
        return
    check_fault(folder, whole)


def _same_meta(folder: Path, whole: Path) -> bool:
    try:
        return json.loads((folder / "meta.json").read_bytes()) == json.loads((whole / "meta.json").read_bytes())
    except ValueError:
        return False


def cut(folder: Path, whole: Path, drawn: random.Random, name: str) -> None:
    os.truncate(folder / name, drawn.randrange((folder / name).stat().st_size))
    if not (name == "meta.json" and _same_meta(folder, whole)):  # only its last line break was lost
        check_fault(folder, whole)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit(copy, whole, name):
    drawn = random.Random(name)
    for _ in range(4):
        flipped(copy(), whole, drawn, name)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(copy, whole, name):
    drawn = random.Random(name)
    for length in (0, 1):
        folder = copy()
        os.truncate(folder / name, length)
        check_fault(folder, whole)
    cut(copy(), whole, drawn, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(copy, whole, name):
    folder = copy()
    (folder / name).unlink()
    check_fault(folder, whole)
    assert name in given(folder)[2][0]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_grew(copy, whole, name):
    folder = copy()
    with (folder / name).open("ab") as file:
        file.write(b"more")
    check_fault(folder, whole)


def test_exchanged_data_files(copy, whole):
    """Of one length, as those of pixels are: only the records' own checksums can tell."""
    folder = copy()
    shutil.copy(whole / "data-00001.bin", folder / "data-00000.bin")
    check_fault(folder, whole)


def test_a_damaged_record_is_named_and_the_others_are_given(copy, whole):
    folder = copy()
    index = layout.read_index(folder, layout.read_meta(folder))
    row = int(index.firsts[2]) + 1
    flip(folder / "data-00002.bin", int(index.offsets[row] - index.offsets[index.firsts[2]]), 0)
    _, records, refusals = given(folder)
    assert len(records) == len(index.checksums) - 1
    damaged = f"{folder}/data-00002.bin: record {row} is damaged: its checksum does not match"
    assert [line.partition(";")[0] for line in refusals] == [damaged]
    assert list(faults(folder)) == [damaged]
    opened(folder, check=False).records([row])  # what data.check=false asks for


def rewritten(folder: Path, **changes: object) -> None:
    """Change what ``meta.json`` says, with a fingerprint and a checksum that fit."""
    content = {**json.loads((folder / "meta.json").read_text()), **changes}
    facts = (content[name] for name in ("content", "shape", "classes", "files"))
    content["fingerprint"] = layout.fingerprint_of(*facts)
    content["checksum"] = layout.checksum(content)
    (folder / "meta.json").write_text(json.dumps(content))


def test_another_version_is_refused(copy):
    folder = copy()
    rewritten(folder, format=2)
    assert "has format 2, this engine reads 1" in given(folder)[2][0]


def test_labels_out_of_range_are_refused_even_where_all_checksums_fit(copy, whole):
    folder = copy()
    meta = layout.read_meta(folder)
    rewritten(folder, classes=list(meta.classes)[:2])
    bad = np.fromfile(folder / "labels.i64", "<i8").tolist().index(2)
    line = f"{folder}/labels.i64: record {bad} has label 2, expected 0 to 1"
    assert given(folder)[2][0].startswith(line)
    assert next(faults(folder)).startswith(line)


@pytest.mark.parametrize(
    ("changes", "reason"), [({"shards": [5]}, "does not fit the data files"), ({"records": 3}, "bytes instead of")]
)
def test_a_description_at_odds_with_the_files(copy, changes, reason):
    folder = copy()
    rewritten(folder, **changes)
    assert reason in given(folder)[2][0]


def test_a_description_without_a_fact(copy):
    folder = copy()
    content = json.loads((folder / "meta.json").read_text())
    del content["shards"]
    content["checksum"] = layout.checksum(content)
    (folder / "meta.json").write_text(json.dumps(content))
    assert "has no 'shards': another program wrote it" in given(folder)[2][0]


def test_truncated_after_it_was_opened(copy):
    """A mapping would end the process with SIGBUS."""
    folder = copy()
    store = opened(folder)
    before = [store.records([row]) for row in range(len(store))]
    os.truncate(folder / "data-00000.bin", 10)
    with pytest.raises(UsageError, match=r"data-00000.bin: record 0 cannot be read: the file was truncated while"):
        store.records([0])
    with pytest.raises(UsageError, match="cannot be read: the file was truncated"):
        store.records(range(len(store)))
    assert _plain(store.records([len(store) - 1])) == _plain(before[-1])


def _plain(records) -> list:
    images = records.images
    return [images.tolist() if isinstance(images, torch.Tensor) else images, records.targets.tolist()]


def test_a_removed_file_is_read_as_long_as_it_is_open(copy, whole):
    folder = copy()
    store = opened(folder)
    shutil.rmtree(folder)
    assert store.records([5]).targets == opened(whole).records([5]).targets


def test_a_disk_that_fails(copy, monkeypatch):
    folder = copy()
    store = opened(folder)

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(source.os, "preadv", fail)
    with pytest.raises(UsageError, match=rf"^{folder}/data-00000.bin cannot be read \(Input/output error\)"):
        store.records([0])
    assert "cannot be read (Input/output error)" in next(faults(folder))


def test_a_read_that_gives_less_than_asked_goes_on(copy, whole, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(source.os, "preadv", lambda file, views, at: preadv(file, [views[0][:7]], at))
    assert given(copy()) == given(whole)


def test_too_many_open_files(copy, monkeypatch):
    real = os.open

    def limited(path: object, *rest: object) -> int:
        if str(path).endswith("data-00002.bin"):
            raise OSError(24, "Too many open files")
        return real(path, *rest)

    folder = copy()
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(source.os, "open", limited)
    line = given(folder)[2][0]
    assert line.endswith(
        "data-00002.bin cannot be opened (Too many open files); raise `ulimit -n`, or pack with a larger shard_size"
    )
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("hard", [4096, 257, resource.RLIM_INFINITY])
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(copy, monkeypatch, hard):
    asked = []
    monkeypatch.setattr(source.resource, "getrlimit", lambda kind: (256, hard))
    monkeypatch.setattr(source.resource, "setrlimit", lambda kind, limits: asked.append(limits))
    used, folder = len(os.listdir("/proc/self/fd")), copy()
    opened(folder)
    most = 257 if hard == 257 else used + len(list(folder.glob("data-*"))) + source.SPARE
    assert [(limit - most in (-1, 0, 1), rest) for limit, rest in asked] == [(True, hard)]
    monkeypatch.setattr(source.resource, "getrlimit", lambda kind: (2048, hard))
    opened(folder)
    assert len(asked) == 1


def test_a_store_that_is_let_go_of_closes_its_files(whole):
    before = len(os.listdir("/proc/self/fd"))
    store = opened(whole)
    assert len(os.listdir("/proc/self/fd")) > before
    del store
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_store(tmp_path, whole):
    (tmp_path / "train").mkdir()
    cases = {
        f"{tmp_path / 'train'} is no store: it has no meta.json": (tmp_path, "train"),
        f"data.root={tmp_path} has no folder test": (tmp_path, "test"),
        f"data.root={whole} is the store of one split": (whole, "train"),
        f"data.root={tmp_path / 'nowhere'}: there is no such folder": (tmp_path / "nowhere", "train"),
    }
    for line, (root, split) in cases.items():
        with pytest.raises(UsageError) as error:
            source.open_store(str(root), split, None, True)
        assert str(error.value).startswith(line)
