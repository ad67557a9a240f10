"""LMDB databases that liblmdb wrote, of all forms its pages take, and every way they can be wrong."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
import pytest

from engine.plugins.data import Lmdb
from engine.plugins.data.lmdb_pages import records_in
from engine.plugins.data.ranges import LocalFiles
from engine.preparation import read
from engine.testing import check_source

lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")


def write(path, records, subdir=True):
    with (
        lmdb.open(str(path), map_size=1 << 26, subdir=subdir) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in records:
            transaction.put(key, value)
    return path / "data.mdb" if subdir else path


@pytest.fixture
def root(tmp_path, pictures, datum):
    """Two databases of raw Datums as Caffe's convert_imageset writes them: blue first, keys of a number and a name."""
    for split, count, seed in (("train", 24, 0), ("test", 12, 1)):
        images, labels = pictures(count, seed)
        records = [
            (b"%08d_%d.jpg" % (n, n), datum(image.transpose(2, 0, 1)[::-1], int(label)))
            for n, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        write(tmp_path / f"{split}_lmdb", records)
    return tmp_path


def test_raw_records_are_what_was_written(root, pictures, same_everywhere):
    images, labels = pictures()
    source = Lmdb(root=str(root)).build("train")
    assert (source.shape, source.classes, len(source)) == ((3, 16, 12), ("0", "1", "2"), 24)
    records = source.records([5, 0, 23])
    assert np.array_equal(records.images.numpy(), images[[5, 0, 23]].transpose(0, 3, 1, 2))
    assert records.targets.tolist() == labels[[5, 0, 23]].tolist()
    assert source.name_of(5) == f"{root}/train_lmdb/data.mdb: record 00000005_5.jpg"
    reversed_ = Lmdb(root=str(root), order="rgb").build("train").records([5])
    assert np.array_equal(reversed_.images[0].numpy(), images[5].transpose(2, 0, 1)[::-1])
    same_everywhere(source)
    check_source(Lmdb(root=str(root)))


def test_encoded_records_and_sizes(tmp_path, pictures, datum, png, engine):
    images, labels = pictures()
    for split in ("train", "val"):
        pairs = zip(images, labels, strict=True)
        write(
            tmp_path / split, [(b"%04d" % n, datum(png(image), int(label))) for n, (image, label) in enumerate(pairs)]
        )
    source = Lmdb(root=str(tmp_path)).build("train")
    assert source.shape == (3, 224, 224)
    assert source.records([3]).images == [png(images[3])]
    check_source(Lmdb(root=str(tmp_path), size=12, channels=1, classes=5))
    engine("data=lmdb", f"data.root={tmp_path}", "data.size=16")


def test_raw_images_are_scaled_where_a_size_is_given(root, pictures):
    images, _ = pictures()
    source = Lmdb(root=str(root), size=8).build("train")
    assert source.records([0]).images.shape == (1, 3, 8, 8)
    assert np.abs(source.records([0]).images.float().mean().item() - images[0, 2:14].mean()) < 3


def test_the_engine_trains_on_it_without_the_library(root, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    engine("data=lmdb", f"data.root={root}", "data.size=16")


@pytest.mark.parametrize(("count", "length"), [(1, 0), (2, 9000), (3000, 10), (600, 1500), (600, 2100), (300, 9000)])
def test_every_place_is_that_of_liblmdb(tmp_path, count, length):
    """Small values in the leaves, large ones on pages of their own, trees of one to three levels."""
    rng = np.random.default_rng(length)
    pairs = [(b"%07d" % n * 9, rng.bytes(length + n % 7)) for n in range(count)]
    file = write(tmp_path / "db", [pairs[n] for n in rng.permutation(count)])
    found = records_in(LocalFiles([file]))
    data = file.read_bytes()
    places = zip(found.offsets.tolist(), found.lengths.tolist(), strict=True)
    assert list(zip(found.keys, [data[o : o + n] for o, n in places], strict=True)) == pairs


def test_the_newest_commit_is_read(tmp_path):
    path = tmp_path / "file.mdb"
    write(path, [(b"%04d" % n, b"old" * 800) for n in range(300)], subdir=False)
    with lmdb.open(str(path), subdir=False, map_size=1 << 26) as environment:
        for n in range(0, 300, 3):
            with environment.begin(write=True) as transaction:
                transaction.delete(b"%04d" % n)
                transaction.put(b"%04d" % (n + 1), b"new" * (n + 1))
        with environment.begin() as transaction:
            expected = [(bytes(key), bytes(value)) for key, value in transaction.cursor()]
    found, data = records_in(LocalFiles([path])), path.read_bytes()
    places = zip(found.offsets.tolist(), found.lengths.tolist(), strict=True)
    assert list(zip(found.keys, [data[o : o + n] for o, n in places], strict=True)) == expected


def test_the_fingerprint_notices_what_changes(root, datum, pictures):
    def fingerprint(**options):
        return Lmdb(root=str(root), **options).build("train").fingerprint

    first = fingerprint()
    images, _ = pictures()
    seen = {first, fingerprint(order="rgb"), fingerprint(classes=7)}
    changed = images[4].transpose(2, 0, 1)[::-1].copy()
    for key, image, label in ((b"00000004_4.jpg", changed, 2), (b"00000004_4.jpg", changed ^ 1, 1), (b"9", changed, 1)):
        write(root / "train_lmdb", [(key, datum(image, label))])
        seen.add(fingerprint())
    assert len(seen) == 6
    write(root / "train_lmdb", [(b"00000004_4.jpg", datum(changed, 1))])
    with lmdb.open(str(root / "train_lmdb")) as environment, environment.begin(write=True) as transaction:
        transaction.delete(b"9")
    assert fingerprint() == first


def test_wrong_records_are_named(root, refused, datum, png, pictures):
    images, _ = pictures()
    good = images[0].transpose(2, 0, 1)
    name = f"{root}/train_lmdb/data.mdb: record 00000007_7.jpg"
    cases = [
        (datum(good, 3), {"classes": 3}, "has label 3, expected 0 to 2; set data.classes"),
        (datum(good, -1), {"classes": 3}, "has label -1"),
        (datum(good, -1), {}, "has label -1, expected 0 or more"),
        (datum(good, None), {"classes": 3}, "has no label"),
        (datum(good, None), {}, "has no label"),
        (datum(png(images[0]), 1), {}, "holds an image file, the first record raw pixels"),
        (datum(good[:, :5], 1), {}, "has an image of 3 x 5 x 12, the first is of 3 x 16 x 12: set data.size"),
        (datum(good[:1], 1), {"size": 8}, "has an image of 1 x 16 x 12, the first is of 3 x 8 x 8: write all with"),
        (datum(good, 1)[:-9], {"classes": 3}, "is damaged: it is truncated: field 4"),
        (b"no datum at all", {}, "is damaged: it is no Caffe Datum"),
    ]
    for value, options, reason in cases:
        write(root / "train_lmdb", [(b"00000007_7.jpg", value)])
        assert refused(Lmdb(root=str(root), **options)).startswith(f"{name} {reason}")


def test_a_record_that_is_no_image_is_named(tmp_path, datum, png, pictures):
    images, labels = pictures()
    records = [(b"%04d" % n, datum(png(image), int(labels[n]))) for n, image in enumerate(images)]
    records[6] = (b"0006", datum(b"<html>404</html>", 1))
    write(tmp_path / "train", records)
    source = Lmdb(root=str(tmp_path)).build("train")
    with pytest.raises(Exception, match=r"data\.mdb: record 0006 cannot be decoded \(not a JPEG or PNG\)"):
        read(source, range(8))


def test_missing_and_doubled_databases_are_named(root, refused):
    assert refused(Lmdb(root=str(root), train="other")).startswith(f"data.root={root} has no other_lmdb")
    shutil.copytree(root / "train_lmdb", root / "train.lmdb")
    assert "has train_lmdb and train.lmdb; set data.train" in refused(Lmdb(root=str(root)))


def test_databases_of_other_kinds_are_refused(tmp_path, refused):
    path = write(tmp_path / "train", [(b"first", b"1"), (b"second", b"2")])
    data = bytearray(path.read_bytes())
    data[data.index(b"second2") - 4] |= 4  # F_DUPDATA in the node's flags; the library sets it for named databases only
    path.write_bytes(data)
    assert "several records have the key of record second" in refused(Lmdb(root=str(tmp_path)))
    with lmdb.open(str(tmp_path / "test"), max_dbs=2) as environment:
        environment.open_db(b"inside")
    assert "record inside is a database of its own" in refused(Lmdb(root=str(tmp_path), classes=2), "test")
    write(tmp_path / "empty", [])
    assert refused(Lmdb(root=str(tmp_path), train="empty")).endswith("holds no records; fetch or write it again")
    (tmp_path / "noise.mdb").write_bytes(np.random.default_rng(0).bytes(9000))
    assert "is no LMDB file" in refused(Lmdb(root=str(tmp_path), train="noise"))
    (tmp_path / "none.mdb").touch()
    assert refused(Lmdb(root=str(tmp_path), train="none")).endswith("none.mdb is empty; fetch it again")


@pytest.mark.parametrize(("place", "width", "order"), [(16, 64, "big"), (12, 32, "little"), (12, 32, "big")])
def test_files_of_other_machines_are_told_from_other_files(root, refused, place, width, order):
    path = root / "train_lmdb" / "data.mdb"
    data = bytearray(path.read_bytes())
    data[:32] = bytes(32)
    data[place : place + 4] = 0xBEEFC0DE.to_bytes(4, order)
    path.write_bytes(data)
    assert refused(Lmdb(root=str(root))) == (
        f"{path} is an LMDB file of a {width}-bit {order}-endian machine; write it on a 64-bit PC"
    )


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (20, 2, "is of version 2 of the LMDB format: 1 can be read; write it again"),
        (40, 4097, "is damaged: it says that its pages have 4097 bytes; fetch or write it again"),
        (40, 0, "is damaged: it says that its pages have 0 bytes; fetch or write it again"),
    ],
)
def test_versions_and_sizes_of_pages_are_named(root, refused, place, value, reason):
    path = root / "train_lmdb" / "data.mdb"
    data = bytearray(path.read_bytes())
    data[place : place + 4] = value.to_bytes(4, "little")
    path.write_bytes(data)
    assert refused(Lmdb(root=str(root))) == f"{path} {reason}"


def test_every_truncation_is_refused(root, refused):
    path = root / "train_lmdb" / "data.mdb"
    whole = path.read_bytes()
    # liblmdb may leave free pages at the end; what holds records is never cut unnoticed.
    found = records_in(LocalFiles([path]))
    last = int((found.offsets + found.lengths).max())
    for length in [*range(1, last, 8009), last - 1]:
        path.write_bytes(whole[:length])
        assert refused(Lmdb(root=str(root))).startswith(str(path))


def test_a_file_that_shrinks_while_it_is_read_is_an_error(root):
    source = Lmdb(root=str(root)).build("train")
    path = root / "train_lmdb" / "data.mdb"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(Exception, match="was changed while it was in use: it has 5000 bytes"):
        source.records([20])


@pytest.mark.parametrize("way", ["in place", "replaced"])
def test_a_file_of_the_same_length_that_is_written_again_is_an_error(root, way):
    source = Lmdb(root=str(root)).build("train")
    path = root / "train_lmdb" / "data.mdb"
    before, whole = path.stat(), path.read_bytes()
    if way == "replaced":
        (root / "other").write_bytes(whole)
        (root / "other").replace(path)
    time = before.st_mtime_ns + (way == "in place")
    os.utime(path, ns=(time, time))
    with pytest.raises(Exception, match="was changed while it was in use: it was written again; start again"):
        source.records([20])


def test_damaged_pages_give_an_error_or_what_was_written(root, pictures, outcome):
    """Bytes altered in the pages' own fields and in records: a refusal, or records right but for the altered byte."""
    path = root / "train_lmdb" / "data.mdb"
    whole, (images, _) = path.read_bytes(), pictures()
    places, inside = records_in(LocalFiles([path])), np.zeros(len(whole), bool)
    for offset, length in zip(places.offsets, places.lengths, strict=True):
        inside[offset : offset + length] = True
    used = np.frombuffer(whole, np.uint8) > 0
    rng = np.random.default_rng(0)
    refusals = 0
    for place in [*rng.choice(np.flatnonzero(~inside & used), 100), *rng.choice(np.flatnonzero(inside), 50)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        found = outcome(Lmdb(root=str(root), classes=3))
        if isinstance(found, str):
            assert found.startswith(str(path))
            refusals += 1
        else:
            different = found.images.numpy() != images.transpose(0, 3, 1, 2)
            assert different.sum() <= 1
    assert refusals > 10
