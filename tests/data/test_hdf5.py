"""HDF5 files that h5py wrote, in all the ways data sets can be laid out, and every way they can be wrong."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from engine import UsageError
from engine.plugins.data import Hdf5
from engine.preparation import read
from engine.testing import check_source

h5py = pytest.importorskip("h5py", reason="h5py is not installed")

LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (5, 16, 12, 3)},
    "part of an image": {"chunks": (7, 8, 12, 1)},
    "compressed": {"chunks": (4, 16, 12, 3), "compression": "gzip", "fletcher32": True},
}


def write(path, images, labels, names=("images", "labels"), **layout):
    """Write a new file, which an open source does not notice, or further data sets into one that has groups."""
    if "/" not in names[0]:
        path.unlink(missing_ok=True)
    with h5py.File(path, "a") as file:
        file.create_dataset(names[0], data=images, **layout)
        file.create_dataset(names[1], data=labels)


def write_files(path, encoded, labels):
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("images", (len(encoded),), h5py.vlen_dtype(np.uint8))
        for row, content in enumerate(encoded):
            data[row] = np.frombuffer(content, np.uint8)
        file["labels"] = labels


@pytest.fixture
def root(tmp_path, pictures):
    for split, count, seed in (("train", 24, 0), ("test", 12, 1)):
        write(tmp_path / f"{split}.h5", *pictures(count, seed))
    return tmp_path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_are_what_was_written(tmp_path, pictures, layout, same_everywhere):
    images, labels = pictures()
    for split in ("train", "test"):
        write(tmp_path / f"{split}.hdf5", images, labels.astype(np.uint8), **LAYOUTS[layout])
    source = Hdf5(root=str(tmp_path)).build("train")
    assert (source.shape, source.classes, len(source)) == ((3, 16, 12), ("0", "1", "2"), 24)
    rows = [5, 6, 7, 23, 0, 5]
    records = source.records(rows)
    assert np.array_equal(records.images.numpy(), images[rows].transpose(0, 3, 1, 2))
    assert records.images.is_contiguous()
    assert records.targets.tolist() == labels[rows].tolist()
    assert source.name_of(5) == f"{tmp_path}/train.hdf5: /images[5]"
    same_everywhere(source)
    check_source(Hdf5(root=str(tmp_path)))


@pytest.mark.parametrize("layout", [{}, {"chunks": True}])
def test_channels_first_gray_and_sizes(tmp_path, pictures, layout):
    images, labels = pictures()
    path = tmp_path / "train.h5"
    write(path, images.transpose(0, 3, 1, 2), labels[:, None], **layout)
    source = Hdf5(root=str(tmp_path)).build("train")
    assert np.array_equal(source.records([3, 1]).images.numpy(), images[[3, 1]].transpose(0, 3, 1, 2))
    write(path, images[..., 0], labels, **layout)
    gray = Hdf5(root=str(tmp_path)).build("train")
    assert gray.shape == (1, 16, 12)
    assert np.array_equal(gray.records([3, 1]).images.numpy(), images[[3, 1], None, :, :, 0])
    flat = np.full((6, 16, 12, 3), (10, 20, 30), np.uint8)
    write(path, flat, labels[:6], **layout)
    scaled = Hdf5(root=str(tmp_path), size=7).build("train").records([2, 4]).images
    assert np.array_equal(scaled.numpy(), np.broadcast_to(np.array([10, 20, 30])[None, :, None, None], (2, 3, 7, 7)))


def test_the_layout_must_be_given_where_it_cannot_be_seen(tmp_path, refused):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 9, 3), dtype=np.uint8)
    write(tmp_path / "train.h5", images, np.arange(6))
    assert refused(Hdf5(root=str(tmp_path))).endswith(
        "6 x 3 x 9 x 3, which does not tell where the channels are: set data.layout"
    )
    for layout, expected in (("nhwc", images.transpose(0, 3, 1, 2)), ("nchw", images)):
        source = Hdf5(root=str(tmp_path), layout=layout).build("train")
        assert np.array_equal(source.records(range(6)).images.numpy(), expected)
    write(tmp_path / "train.h5", rng.integers(0, 256, (6, 9, 9, 9), dtype=np.uint8), np.arange(6))
    assert "set data.layout" in refused(Hdf5(root=str(tmp_path)))
    assert "9 channels can be read in their own size only" in refused(Hdf5(root=str(tmp_path), layout="nchw", size=4))


def test_image_files_of_variable_length(tmp_path, pictures, png, engine, same_everywhere):
    images, labels = pictures()
    for split in ("train", "valid"):
        write_files(tmp_path / f"{split}.h5", [png(image) for image in images], labels)
    options = Hdf5(root=str(tmp_path), size=16)
    source = options.build("train")
    assert source.records([4, 2]).images == [png(images[4]), png(images[2])]
    same_everywhere(source)
    check_source(options)
    engine("data=hdf5", f"data.root={tmp_path}", "data.size=16")
    write_files(tmp_path / "train.h5", [png(images[0]), b"<html>404</html>"], labels[:2])
    with pytest.raises(UsageError, match=r"train\.h5: /images\[1\] cannot be decoded \(not a JPEG or PNG\)"):
        read(Hdf5(root=str(tmp_path)).build("train"), range(2))


def test_one_file_with_groups_names_of_classes_and_other_names(tmp_path, pictures):
    path = tmp_path / "all.h5"
    images, labels = pictures()
    for group, count in (("train", 24), ("validation", 9), ("extra", 6)):
        write(path, images[:count], labels[:count], (f"{group}/x", f"{group}/y"))
    with h5py.File(path, "a") as file:
        file["train/y"].attrs["class_names"] = ["cat", "dog", "eel"]
    for split, test, count in (("train", None, 24), ("test", None, 9), ("test", "extra", 6)):
        source = Hdf5(root=str(path), images="x", labels="y", test=test).build(split)
        assert (len(source), source.classes) == (count, ("cat", "dog", "eel"))
        assert np.array_equal(source.records(range(count)).images.numpy(), images[:count].transpose(0, 3, 1, 2))
    check_source(Hdf5(root=str(path), images="x", labels="y"))


def test_names_of_classes_that_are_no_list_of_texts_are_refused(root, refused):
    path = root / "train.h5"

    def named(names):
        with h5py.File(path, "a") as file:
            file["labels"].attrs["class_names"] = names

    for names in ("cat", b"cat", [["cat", "dog", "eel"]], [1, 2, 3], np.array([b"\xff", b"a", b"b"]), h5py.Empty("S3")):
        named(names)
        assert refused(Hdf5(root=str(root))) == (
            f"{path}: labels has a class_names that is no list of texts; write one name for each class"
        )
    named(np.array([b"cat", b"dog", b"eel"]))
    for classes in (None, 3):
        assert Hdf5(root=str(root), classes=classes).build("train").classes == ("cat", "dog", "eel")
    assert refused(Hdf5(root=str(root), classes=4)) == (
        f"data.classes=4, but {path}: labels has 3 class_names; leave one of them out"
    )


def test_the_engine_trains_on_it(root, engine):
    engine("data=hdf5", f"data.root={root}", "data.size=16")


def test_the_fingerprint_notices_what_changes(root, pictures):
    def fingerprint(**options):
        return Hdf5(root=str(root), **options).build("train").fingerprint

    images, labels = pictures()
    first = fingerprint()
    seen = {first, fingerprint(classes=9), Hdf5(root=str(root)).build("test").fingerprint}
    changed, relabelled = images.copy(), labels.copy()
    changed[23, 15, 11, 2] ^= 1
    relabelled[7] = 0
    for some in ((changed, labels), (images, relabelled), (images[:23], labels[:23])):
        write(root / "train.h5", *some)
        seen.add(fingerprint())
    assert len(seen) == 6
    write(root / "train.h5", images, labels, chunks=(3, 16, 12, 3))
    assert fingerprint() == first


def test_missing_files_groups_and_data_sets_are_named(root, refused, tmp_path):
    assert refused(Hdf5(root=str(root), train="other")) == (
        f"data.root={root} has no other.h5 or other.hdf5; give the folder that holds it, or set data.train"
    )
    assert refused(Hdf5(root=str(root), images="x")) == (
        f"{root}/train.h5 has no data set x, but images, labels; set data.images and data.labels"
    )
    assert "has no group train; set data.train" in refused(Hdf5(root=str(root / "train.h5")))
    (root / "train.hdf5").write_bytes(b"")
    assert "has train.h5 and train.hdf5; set data.train" in refused(Hdf5(root=str(root)))
    assert refused(Hdf5(root=str(root), train="train.hdf5")).startswith(f"{root}/train.hdf5 cannot be opened (")


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (
            np.zeros((6, 4, 4, 3), np.float32),
            np.zeros(6, int),
            "/images is float32 of shape 6 x 4 x 4 x 3, expected uint8",
        ),
        (np.zeros((6, 48), np.uint8), np.zeros(6, int), "/images is uint8 of shape 6 x 48, expected uint8"),
        (np.zeros((6, 4, 4, 3), np.uint8), np.zeros(5, int), "has 6 images in images but 5 labels in labels"),
        (np.zeros((6, 4, 4, 3), np.uint8), np.zeros(6), "labels is float64 of shape 6, expected whole numbers [n]"),
        (np.zeros((6, 4, 4, 3), np.uint8), np.zeros((6, 2), int), "labels is int64 of shape 6 x 2, expected whole"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, int), "labels is empty"),
        (np.zeros((6, 4, 4, 3), np.uint8), np.array([0, 1, 9, 0, 1, 2]), "labels[2] has label 9, expected 0 to 2"),
        (np.zeros((6, 4, 4, 3), np.uint8), np.array([0, 1, 2, 0, -1, 2]), "labels[4] has label -1, expected 0 to 2"),
    ],
)
def test_wrong_data_sets_are_named(tmp_path, refused, images, labels, reason):
    write(tmp_path / "train.h5", images, labels)
    message = refused(Hdf5(root=str(tmp_path), classes=3))
    assert message.startswith(f"{tmp_path}/train.h5")
    assert reason in message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_truncation_is_refused(tmp_path, pictures, refused, layout):
    path = tmp_path / "train.h5"
    write(path, *pictures(), **LAYOUTS[layout])
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 9):
        path.write_bytes(whole[:length])
        assert refused(Hdf5(root=str(tmp_path))).startswith(str(path))


def test_checksums_of_chunks_are_compared(tmp_path, pictures, refused):
    path = tmp_path / "train.h5"
    write(path, *pictures(), chunks=(4, 16, 12, 3), fletcher32=True)
    with h5py.File(path) as file:
        place = file["images"].id.get_chunk_info(2).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 100] ^= 1
    path.write_bytes(data)
    assert refused(Hdf5(root=str(tmp_path))).startswith(f"{path}: /images[8] cannot be read (")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(root):
    source = Hdf5(root=str(root)).build("train")
    path = root / "train.h5"
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(UsageError, match="was changed while it was in use: it has 6000 bytes"):
        source.records([20])


def test_what_is_missing_is_said_with_the_command_to_install_it(root, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    told = engine("data=hdf5", f"data.root={root}", code=2)
    assert told == "engine: data=hdf5 needs h5py: pip install 'conv-engine[hdf5]'"
