"""``engine pack`` and ``engine verify`` as a user gives them, and training from what they wrote."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from engine import manifest
from engine.plugins.stores import telling


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of six photographs each to train, three to test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for number in range(2 * count):
            path = tmp_path / "photos" / split / ("cat", "dog")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (20 + number, 30, 3), dtype=np.uint8) + 127 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "photos"


def test_training_from_a_store_gives_the_same_weights(engine, tmp_path, photos):
    code, out, err = engine("pack", "data=folder", "data.root=photos", "data.size=16", "content=encoded", "out=store")
    assert (code, err) == (0, "")
    assert re.findall(r"store/(\w+): ([\d,]+) images in 1 data file, ", out) == [("train", "12"), ("test", "6")]
    # A store knows the statistics of whole images, a folder those of a sample in the size that is trained on.
    words = ["model.width=4", "run.batch=4", "run.epochs=1", "observe=[]"]
    words += ["augment.normalize.mean=[0.5]", "augment.normalize.std=[0.25]"]
    assert engine("train", "data=folder", "data.root=photos", "data.size=16", *words, "out=a")[0] == 0
    assert engine("train", "data=store", "data.root=store", *words, "out=b")[0] == 0
    one, other = (load_file(manifest.checkpoints(tmp_path / run)[0] / "model.safetensors") for run in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("content", ["pixels", "encoded"])
def test_pack_then_verify_and_once_more(engine, photos, content):
    words = ("pack", "data=folder", "data.root=photos", f"content={content}", "out=store")
    assert engine(*words)[0] == 0
    code, out, err = engine("verify", "data.root=store")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "store/train: 12 images in 1 data file, all as they were packed",
        "store/test: 6 images in 1 data file, all as they were packed",
    ]
    code, out, _ = engine(*words)
    assert code == 0
    assert out.count("packed already, nothing to do") == 2


def test_the_default_data_packs(engine, tmp_path):
    assert engine("pack", "out=store", "splits=[test]", "threads=2")[0] == 0
    assert [path.name for path in (tmp_path / "store").iterdir() if path.is_dir()] == ["test"]
    assert engine("verify", "data.root=store") == (
        0, "store/test: 360 images in 1 data file, all as they were packed\n", "",
    )  # fmt: skip


def test_verify_tells_every_fault_and_ends_with_2(engine, tmp_path, photos):
    assert engine("pack", "data=folder", "data.root=photos", "out=store")[0] == 0
    data = tmp_path / "store" / "train" / "data-00000.bin"
    spoiled = bytearray(data.read_bytes())
    spoiled[0] ^= 1
    spoiled[-1] ^= 1
    data.write_bytes(bytes(spoiled))
    (tmp_path / "store" / "test" / "labels.i64").unlink()
    code, out, err = engine("verify", "data.root=store")
    assert code == 2
    assert [line.partition(";")[0] for line in out.splitlines()] == [
        "store/train/data-00000.bin: record 0 is damaged: its checksum does not match",
        "store/train/data-00000.bin: record 11 is damaged: its checksum does not match",
        "store/test/labels.i64 cannot be read (No such file or directory)",
    ]
    assert err == "engine: data.root=store has 3 faults, listed above; pack it again, or restore it from a copy\n"
    code, out, err = engine("train", "data=store", "data.root=store", "run.batch=4", "observe=[]")
    assert code == 2
    assert re.search("data-00000.bin: record|labels.i64 cannot be read", err)


def test_many_damaged_records_are_counted(engine, tmp_path):
    assert engine("pack", "out=store", "splits=[test]")[0] == 0
    data = tmp_path / "store" / "test" / "data-00000.bin"
    data.write_bytes(bytes(255 - value for value in data.read_bytes()))
    out = engine("verify", "data.root=store")[1].splitlines()
    assert len(out) == 11
    assert out[-1].endswith("data-00000.bin: 350 more records are damaged")


def test_unreadable_images_are_listed_or_left_out(engine, tmp_path, photos):
    path = photos / "train" / "cat" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-200])  # its header is whole, so data=folder does not know
    words = ("pack", "data=folder", "data.root=photos", "out=store")
    code, _, err = engine(*words)
    assert code == 2
    assert err.startswith(f"engine: train has 1 unreadable image: {path.relative_to(tmp_path)} (cannot be decoded")
    assert "skip_unreadable=true" in err
    assert len(err.splitlines()) == 1
    code, _, err = engine("train", "data=store", "data.root=store")
    assert (code, "is an unfinished store" in err) == (2, True)
    code, out, err = engine(*words, "skip_unreadable=true")
    assert code == 0
    assert "going on after 12 of 12 images" in err
    assert f"skipped {path.relative_to(tmp_path)} (cannot be decoded" in err
    assert "11 images in 1 data file" in out
    assert "1 unreadable left out" in out
    assert len(json.loads((tmp_path / "store" / "train" / "meta.json").read_text())["skipped"]) == 1


def test_an_image_that_changed_meanwhile_is_not_mixed_in(engine, tmp_path, photos):
    """Of the same length, so that the folder's fingerprint does not tell."""
    path = photos / "train" / "cat" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    words = ("pack", "data=folder", "data.root=photos", "out=store", "skip_unreadable=true")
    assert engine(*words[:-1])[0] == 2
    other = photos / "train" / "dog" / "5.jpg"
    data = other.read_bytes()
    other.write_bytes(data[:-60] + bytes(58) + data[-2:])
    code, _, err = engine(*words)
    assert code == 2
    assert err == (
        f"engine: {tmp_path}/store/train was begun with other data: {other.relative_to(tmp_path)} has changed since it "
        "was packed; delete the folder, or choose another out=\n"
    )
    other.write_bytes(data)
    assert engine(*words)[0] == 0


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_files_that_are_no_images_are_the_sources_to_refuse(engine, tmp_path, photos, content):
    (photos / "test" / "dog" / "page.jpg").write_bytes(content)
    code, _, err = engine("pack", "data=folder", "data.root=photos", "out=store")
    assert code == 2
    assert "dog/page.jpg (" in err
    assert not (tmp_path / "store").exists()
    assert engine("pack", "data=folder", "data.root=photos", "data.skip_unreadable=true", "out=store")[0] == 0


def test_one_option_leaves_out_what_is_no_image_and_what_cannot_be_decoded(engine, tmp_path, photos):
    cut, page = photos / "train" / "cat" / "0.jpg", photos / "train" / "dog" / "page.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    page.write_text("<html>404</html>")
    words = ("pack", "data=folder", "data.root=photos", "out=store")
    assert engine(*words)[0] == 2
    code, out, err = engine(*words, "skip_unreadable=true")
    assert code == 0
    assert f"skipping {page.relative_to(tmp_path)} (not a JPEG or PNG)" in err
    assert f"skipped {cut.relative_to(tmp_path)} (cannot be decoded" in err
    assert len(err.splitlines()) == 2  # each once
    assert "store/train: 11 images in 1 data file" in out
    assert "2 unreadable left out" in out
    kept = json.loads((tmp_path / "store" / "train" / "meta.json").read_text())["skipped"]
    assert [line.partition(" (")[0] for line in kept] == [str(path.relative_to(tmp_path)) for path in (page, cut)]
    code, out, _ = engine(*words, "skip_unreadable=true")
    assert (code, out.count("packed already, nothing to do")) == (0, 2)
    assert engine("pack", "data=digits", "out=digits", "splits=[test]", "skip_unreadable=true")[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["pack", "content=encoded", "shorter_side=8", "out=s"],
            "shorter_side=8 reduces pixels, and content=encoded keeps",
        ),
        (["pack"], "out must be given"),
        (["pack", "out=x", "splits=[val]"], r"splits=\[val\]: write \[train,test\]"),
        (["pack", "out=x", "splits=[]"], r"splits=\[\]: write"),
        (["pack", "out=x", "content=jpeg"], "content=jpeg: no such choice"),
        (["pack", "out=x", "content=encoded"], "this data has no encoded images"),
        (["pack", "out=file/x"], "out=.* cannot be written"),
        (["verify"], r"data\.root must be given"),
        (["verify", "data.root=nowhere"], r"data\.root=nowhere: there is no such folder"),
        (["verify", "data=digits"], "data=digits: verify reads stores"),
    ],
)
def test_mistakes_are_one_line(engine, tmp_path, words, expected):
    (tmp_path / "file").write_text("in the way")
    code, _, err = engine(*words)
    assert code == 2, err
    assert len(err.splitlines()) == 1
    assert re.search(expected, err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_store_in_use_is_refused(engine, tmp_path):
    from engine.folder import claim

    with claim(tmp_path / "store", resuming=True):
        code, _, err = engine("pack", "out=store")
    assert code == 2
    assert f"is in use by process {os.getpid()}" in err


def test_progress_is_lines_in_a_file_and_a_bar_in_a_terminal(engine, monkeypatch):
    monkeypatch.setattr(telling, "EVERY", 0.0)
    _, _, err = engine("pack", "out=lines", "splits=[test]")
    assert re.search(r"packing test: 360 of 360 images, [\d,]+ a second, 0 s left", err)
    master, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        progress = telling.Progress("packing test", 10, "images", done=4)
        progress.advance(6)
        progress.close()
    assert re.search(r"packing test: 100%.*10/10", shown(master))


def shown(terminal: int) -> str:
    """Return what was written to a pseudo-terminal whose other end is closed."""
    seen = b""
    try:
        while True:
            seen += os.read(terminal, 4096)
    except OSError:  # how Linux tells that nothing is left
        os.close(terminal)
    return seen.decode()
