"""Folders of images: what is found, what is refused, and what a checkpoint's fingerprint notices."""

import csv
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from engine import UsageError
from engine.plugins.data import Folder
from engine.preparation import read


def image(path, shade=0, size=(12, 10)):
    """Write an image of one shade; its format follows its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path, path.suffix[1:].lower().replace("jpg", "jpeg"))
    return path


@pytest.fixture
def root(tmp_path):
    """Two classes of two images each to train, one each to test."""
    for number, name in enumerate(("cat", "dog")):
        image(tmp_path / "train" / name / "1.png", 10 * number)
        image(tmp_path / "train" / name / "2.JPG", 10 * number + 5)
        image(tmp_path / "test" / name / "1.jpeg", 10 * number)
    return tmp_path


def refused(root, split="train", **options) -> str:
    with pytest.raises(UsageError) as error:
        Folder(root=str(root), **options).build(split)
    message = str(error.value)
    assert "\n" not in message
    return message


def names(source) -> list[str]:
    return [source.name_of(index) for index in range(len(source))]


def test_files_are_numbered_by_class_and_name(root):
    image(root / "train" / "dog" / "young" / "0.PNG")
    (root / "train" / "dog" / "notes.txt").write_text("not an image")
    image(root / "train" / "dog" / ".hidden" / "1.png")
    (root / "train" / "dog" / "._2.jpg").write_bytes(b"metadata of another system")
    (root / "train" / ".cache").mkdir()
    source = Folder(root=str(root), size=20).build("train")
    files = ["cat/1.png", "cat/2.JPG", "dog/1.png", "dog/2.JPG", "dog/young/0.PNG"]
    assert names(source) == [str(root / "train" / file) for file in files]
    assert list(source.classes) == ["cat", "dog"]
    assert source.shape == (3, 20, 20)
    records = source.records([4, 0, 3])
    assert records.encoding == "encoded"
    assert records.targets.tolist() == [1, 0, 1]
    assert list(records.images) == [(root / "train" / files[place]).read_bytes() for place in (4, 0, 3)]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_loader_decodes_to_the_shape(root, channels):
    source = Folder(root=str(root), size=7, channels=channels).build("train")
    images, targets = read(source, range(4))
    shades = torch.tensor([0, 5, 10, 15]).view(4, 1, 1, 1)
    assert (images.int() - shades).abs().max() <= 1
    assert images.shape == (4, channels, 7, 7)
    assert targets.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_the_test_folder_has_several_usual_names(root, name):
    (root / "test").rename(root / name)
    source = Folder(root=str(root)).build("test")
    assert names(source) == [str(root / name / file) for file in ("cat/1.jpeg", "dog/1.jpeg")]


def test_folders_of_other_names(root):
    (root / "train").rename(root / "learn")
    image(root / "val" / "cat" / "9.png")
    assert "set data.test" in refused(root, "test", train="learn")
    source = Folder(root=str(root), train="learn", test="val").build("test")
    assert names(source) == [str(root / "val" / "cat" / "9.png")]
    assert list(source.classes) == ["cat", "dog"]
    assert len(Folder(root=str(root), train="learn").build("train")) == 4


def test_missing_split_folders_are_named(root):
    shutil.rmtree(root / "test")
    assert f"data.root={root} has no folder test or val" in refused(root, "test")
    shutil.rmtree(root / "train")
    assert f"data.root={root} has no folder train;" in refused(root)


def test_a_split_without_classes_is_named(root):
    shutil.rmtree(root / "train")
    image(root / "train" / "loose.png")
    assert refused(root).startswith(f"{root / 'train'} has no class folders")


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_class_folders_are_named(root, split):
    (root / split / "bird").mkdir()
    (root / "train" / "bird").mkdir(exist_ok=True)
    (root / split / "bird" / "picture.bmp").write_bytes(b"another format")
    message = refused(root, split)
    assert message.startswith(f"{root / split}: no readable")
    assert "class folder bird;" in message


def test_test_classes_must_be_trained(root):
    image(root / "test" / "zebra" / "1.png")
    message = refused(root, "test")
    assert "zebra" in message
    assert str(root / "train") in message


def test_two_channels_are_refused(root):
    assert refused(root, channels=2).startswith("data.channels=2: must be 3 (colour) or 1 (grayscale)")


def test_unreadable_files_are_listed_or_skipped(root, capsys):
    bad = {"cat/empty.jpg": "empty", "cat/page.png": "not a JPEG or PNG", "dog/gone.jpg": "No such file or directory"}
    (root / "train" / "cat" / "empty.jpg").touch()
    (root / "train" / "cat" / "page.png").write_text("<html>404</html>")
    os.symlink(root / "nowhere", root / "train" / "dog" / "gone.jpg")
    message = refused(root)
    assert f"{root / 'train'} has 3 unreadable images: " in message
    assert all(f"{name} ({reason})" in message for name, reason in bad.items())
    assert "data.skip_unreadable=true" in message
    source = Folder(root=str(root), skip_unreadable=True).build("train")
    assert len(source) == 4
    told = capsys.readouterr().err.splitlines()
    assert told == [f"data: skipping {root / 'train' / name} ({reason})" for name, reason in bad.items()]


def test_many_unreadable_files_are_counted(root):
    for number in range(14):
        (root / "train" / "cat" / f"bad{number:02}.jpg").write_bytes(b"no")
    message = refused(root)
    assert "14 unreadable images" in message
    assert len(re.findall(r"bad\d\d\.jpg", message)) == 10
    assert "and 4 more" in message


def test_a_class_left_empty_by_skipping_is_named(root):
    (root / "test" / "dog" / "1.jpeg").write_bytes(b"")
    assert "class folder dog" in refused(root, "test", skip_unreadable=True)


def test_a_file_that_fails_later_is_named(root):
    path = root / "train" / "dog" / "noise.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])  # the header is whole
    source = Folder(root=str(root)).build("train")
    index = names(source).index(str(path))
    with pytest.raises(UsageError, match=f"^{re.escape(str(path))} cannot be decoded"):
        read(source, [0, index])
    path.unlink()
    with pytest.raises(UsageError, match=f"^{re.escape(str(path))} cannot be read"):
        read(source, [index])


def test_the_fingerprint_notices_what_changes(root):
    def fingerprint(split="train"):
        return Folder(root=str(root)).build(split).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    seen = {first, fingerprint("test")}
    extra = image(root / "train" / "dog" / "3.png")
    seen.add(fingerprint())
    extra.rename(extra.with_name("4.png"))
    seen.add(fingerprint())
    with extra.with_name("4.png").open("ab") as file:
        file.write(b"x")
    seen.add(fingerprint())
    extra.with_name("4.png").rename(root / "train" / "cat" / "4.png")
    seen.add(fingerprint())
    assert len(seen) == 6
    (root / "train" / "cat" / "4.png").unlink()
    assert fingerprint() == first


@pytest.mark.parametrize("closed", ["train", "train/dog", "train/dog/young"])
def test_a_folder_that_cannot_be_listed_is_named(root, closed, monkeypatch):
    image(root / "train" / "dog" / "young" / "0.png")
    scandir = os.scandir

    def scan(path):
        if os.fspath(path) == str(root / closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)  # chmod would not stop a test that runs as root
    assert refused(root).startswith(f"{root / closed} cannot be listed (Permission denied)")


def test_names_that_are_no_unicode(root):
    odd = os.fsencode(root / "train" / "cat") + b"/caf\xe9.png"
    shutil.copy(root / "train" / "cat" / "1.png", odd)
    source = Folder(root=str(root)).build("train")
    assert len(source) == 5
    assert len(source.records(range(5)).images) == 5


def test_every_real_image_decodes(real_data, tmp_path):
    sample = real_data("imagenet-sample")
    rows = list(csv.DictReader((sample / "labels.csv").open()))
    for row in rows:
        folder = tmp_path / "train" / f"{int(row['class_index']):04}"
        folder.mkdir(parents=True, exist_ok=True)
        os.symlink(sample / row["file"], folder / row["file"])
    source = Folder(root=str(tmp_path), size=64).build("train")
    images, targets = read(source, range(len(source)))
    assert images.shape == (173, 3, 64, 64)
    index_of = {row["file"]: int(row["class_index"]) for row in rows}
    for index, name in enumerate(names(source)):
        assert int(source.classes[targets[index]]) == index_of[os.path.basename(name)]
        upright = ImageOps.exif_transpose(Image.open(name)).convert("RGB")
        expected = np.asarray(ImageOps.fit(upright, (64, 64), Image.Resampling.BILINEAR)).astype(int)
        # Most are reduced while decoding: close to the full decode (another photograph is 50 off) but not equal.
        assert np.abs(images[index].permute(1, 2, 0).numpy() - expected).mean() < 3
