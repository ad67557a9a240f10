"""LevelDB databases that LevelDB itself wrote, neither locked nor written to, and every way they can be wrong."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.plugins.data import LevelDb
from engine.plugins.data.leveldb_manifest import live_files, read_manifest
from engine.testing import check_source

plyvel = pytest.importorskip("plyvel", reason="plyvel is not installed")


def write(path: Path, records, **options) -> None:
    with plyvel.DB(str(path), create_if_missing=True, **options) as database:
        for key, value in records:
            database.put(key, value)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.fixture
def root(tmp_path, pictures, datum):
    """Two databases of raw Datums, one of several tables, as Caffe's convert_imageset writes them."""
    for split, count, seed in (("train", 24, 0), ("test", 12, 1)):
        images, labels = pictures(count, seed)
        records = [
            (b"%08d" % n, datum(image.transpose(2, 0, 1)[::-1], int(label)))
            for n, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        write(tmp_path / f"{split}_leveldb", records)
        for _ in range(3):  # each opening turns the log of the last one into a table
            write(tmp_path / f"{split}_leveldb", records[:5])
    return tmp_path


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory, monkeypatch):
    """Keep the links of processes that a test ends at once out of the machine's own folder; return where they are."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def tables(folder: Path) -> list[Path]:
    return [path for path in live_files(folder) if path.suffix in (".ldb", ".sst")]


def test_raw_records_are_what_was_written(root, pictures, same_everywhere):
    images, labels = pictures()
    source = LevelDb(root=str(root)).build("train")
    assert (source.shape, source.classes, len(source)) == ((3, 16, 12), ("0", "1", "2"), 24)
    records = source.records([5, 0, 23])
    assert np.array_equal(records.images.numpy(), images[[5, 0, 23]].transpose(0, 3, 1, 2))
    assert records.targets.tolist() == labels[[5, 0, 23]].tolist()
    assert source.name_of(5) == f"{root}/train_leveldb: record 00000005"
    same_everywhere(source)
    check_source(LevelDb(root=str(root)))


def test_encoded_records_train(tmp_path, pictures, datum, png, engine):
    images, labels = pictures()
    for split in ("train", "test"):
        pairs = zip(images, labels, strict=True)
        write(
            tmp_path / split, [(b"%04d" % n, datum(png(image), int(label))) for n, (image, label) in enumerate(pairs)]
        )
    assert LevelDb(root=str(tmp_path)).build("train").records([3]).images == [png(images[3])]
    engine("data=leveldb", f"data.root={tmp_path}", "data.size=16")


def test_a_database_is_neither_locked_nor_written_to(root, own_temporary_folder):
    own = own_temporary_folder
    folder = root / "train_leveldb"
    with plyvel.DB(str(folder)) as database:
        database.compact_range()
    with plyvel.DB(str(folder)):  # as another process might
        source = LevelDb(root=str(root)).build("train")
        assert len(source) == 24
    (folder / "999999.ldb").write_bytes(b"left over by a compaction that was interrupted")
    before = state(folder)
    again = LevelDb(root=str(root)).build("train")
    assert again.fingerprint == source.fingerprint
    again.records(range(24))
    assert state(folder) == before
    assert len(list(own.iterdir())) == 2
    del source, again
    assert list(own.iterdir()) == []


def test_files_that_are_not_in_use_are_never_written_to(tmp_path, refused):
    """A table that was written but not yet entered has the number that LevelDB takes next."""
    folder = tmp_path / "train"
    write(folder, [(b"%04d" % n, os.urandom(300)) for n in range(500)], write_buffer_size=40_000)
    known = {int(path.stem) for path in tables(folder)}
    for number in range(max(known) + 1, max(known) + 6):
        if not (folder / f"{number:06}.log").exists():
            (folder / f"{number:06}.ldb").write_bytes(b"an orphan")
    before = state(folder)
    assert "record 0000 is damaged: " in refused(LevelDb(root=str(tmp_path), classes=1))
    assert state(folder) == before


def test_a_process_that_ends_leaves_nothing_behind(root, own_temporary_folder):
    source = LevelDb(root=str(root)).build("train")
    before = list(own_temporary_folder.iterdir())
    child = multiprocessing.get_context("fork").Process(target=source.records, args=([1, 2],))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert list(own_temporary_folder.iterdir()) == before
    assert len(source.records([0]).targets) == 1


def test_the_fingerprint_notices_what_changes(root, datum, pictures):
    def fingerprint(**options):
        return LevelDb(root=str(root), **options).build("train").fingerprint

    first = fingerprint()
    image = pictures()[0][4].transpose(2, 0, 1)[::-1].copy()
    seen = {first, fingerprint(order="rgb"), fingerprint(classes=7)}
    for key, changed, label in ((b"00000004", image, 2), (b"00000004", image ^ 1, 1), (b"9", image, 1)):
        write(root / "train_leveldb", [(key, datum(changed, label))])
        seen.add(fingerprint())
    assert len(seen) == 6
    with plyvel.DB(str(root / "train_leveldb")) as database:
        database.put(b"00000004", datum(image, 1))
        database.delete(b"9")
        database.compact_range()
    assert fingerprint() == first


def test_what_the_manifest_says_is_what_leveldb_uses(tmp_path):
    folder = tmp_path / "db"
    write(folder, [(b"%05d" % n, os.urandom(200)) for n in range(3000)], write_buffer_size=30_000)
    with plyvel.DB(str(folder)) as database:
        database.compact_range()
    with plyvel.DB(str(folder)):  # what is not in use is deleted when it is opened
        pass
    (manifest,) = folder.glob("MANIFEST-*")
    found = read_manifest(manifest).tables
    assert found == {int(path.stem): path.stat().st_size for path in folder.glob("*.ldb")}
    assert len(found) >= 1


def test_wrong_records_are_named(root, refused, datum, png, pictures):
    good = pictures()[0][0].transpose(2, 0, 1)
    cases = [
        (datum(good, 3), {"classes": 3}, "has label 3, expected 0 to 2"),
        (datum(good, -1), {}, "has label -1"),
        (datum(good, None), {}, "has no label"),
        (datum(png(good.transpose(1, 2, 0)), 1), {}, "holds an image file, the first record raw pixels"),
        (datum(good[:, :5], 1), {}, "has an image of 3 x 5 x 12, the first is of 3 x 16 x 12"),
        (datum(good, 1)[:-9], {}, "is damaged: it is truncated: field 4"),
    ]
    for value, options, reason in cases:
        write(root / "train_leveldb", [(b"00000007", value)])
        message = refused(LevelDb(root=str(root), **options))
        assert message.startswith(f"{root}/train_leveldb: record 00000007 {reason}")


def test_missing_truncated_and_foreign_files_are_named(root, refused):
    assert refused(LevelDb(root=str(root), train="other")).startswith(f"data.root={root} has no other_leveldb")
    folder = root / "train_leveldb"
    table = tables(folder)[0]
    whole = table.read_bytes()
    table.write_bytes(whole[:-1])
    assert f"{table} has {len(whole) - 1} bytes instead of {len(whole)}" in refused(LevelDb(root=str(root)))
    table.unlink()
    assert refused(LevelDb(root=str(root))).startswith(f"{table} is missing")
    (manifest,) = folder.glob("MANIFEST-*")
    edits = manifest.read_bytes()
    manifest.write_bytes(edits[:-3])
    assert refused(LevelDb(root=str(root))).startswith(f"{manifest} is damaged")
    manifest.unlink()
    assert refused(LevelDb(root=str(root))).startswith(f"{manifest} is missing")
    (folder / "CURRENT").unlink()
    assert refused(LevelDb(root=str(root))) == (
        f"{folder} is no LevelDB database: it has no file CURRENT; check data.root"
    )


def test_an_empty_database_is_refused(tmp_path, refused):
    write(tmp_path / "train", [])
    assert refused(LevelDb(root=str(tmp_path))) == f"{tmp_path}/train holds no records; fetch or write it again"


def test_every_altered_byte_of_a_table_is_noticed_or_without_effect(root, outcome):
    """Blocks have checksums, so that no damaged pixel is ever returned."""
    folder = root / "train_leveldb"
    expected = outcome(LevelDb(root=str(root)))
    table = max(tables(folder), key=lambda path: path.stat().st_size)
    whole = table.read_bytes()
    noticed = 0
    for place in range(11, len(whole), len(whole) // 24):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        table.write_bytes(damaged)
        found = outcome(LevelDb(root=str(root)))
        if isinstance(found, str):
            assert found.startswith(str(folder))
            noticed += 1
        else:
            assert torch.equal(found.images, expected.images)
    assert noticed > 20


def test_what_is_missing_is_said_with_the_command_to_install_it(root, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "plyvel", None)
    told = engine("data=leveldb", f"data.root={root}", code=2)
    assert told == "engine: data=leveldb needs plyvel: pip install 'conv-engine[leveldb]'"
