"""IDX files: MNIST's published facts, files written here byte by byte, and every way they can be wrong."""

import gzip
import re
import struct

import numpy as np
import pytest
import torch

from engine import UsageError
from engine.plugins.data import Idx

NAMES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip


def write(folder, count=7, height=3, width=5, split="train", labels=None):
    """Write a split as IDX and return its pixels and labels."""
    rng = np.random.default_rng(count)
    pixels = rng.integers(0, 256, (count, height, width), dtype=np.uint8)
    labels = [number % 10 for number in range(count)] if labels is None else labels
    images_name, labels_name = NAMES[split]
    (folder / images_name).write_bytes(struct.pack(">IIII", 0x803, count, height, width) + pixels.tobytes())
    (folder / labels_name).write_bytes(struct.pack(">II", 0x801, len(labels)) + bytes(labels))
    return pixels, labels


def refused(folder, split="train", **options) -> str:
    with pytest.raises(UsageError) as error:
        Idx(root=str(folder), **options).build(split)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("split", ["train", "test"])
def test_records_are_the_bytes_written(tmp_path, split):
    pixels, labels = write(tmp_path, split=split)
    source = Idx(root=str(tmp_path)).build(split)
    assert (len(source), source.shape, len(source.classes)) == (7, (1, 3, 5), 10)
    records = source.records([6, 0, 2])
    assert records.encoding == "raw"
    assert np.array_equal(records.images.numpy(), pixels[[6, 0, 2]][:, None])
    assert records.targets.dtype == torch.int64
    assert records.targets.tolist() == [labels[6], labels[0], labels[2]]


def test_gzipped_and_dotted_names_give_the_same_source(tmp_path):
    plain, packed, dotted = (tmp_path / name for name in ("plain", "packed", "dotted"))
    for folder in (plain, packed, dotted):
        folder.mkdir()
    write(plain)
    for path in plain.iterdir():
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        (dotted / path.name.replace("-idx", ".idx")).write_bytes(path.read_bytes())
    expected = Idx(root=str(plain)).build("train")
    for folder in (packed, dotted):
        source = Idx(root=str(folder)).build("train")
        assert source.fingerprint == expected.fingerprint
        assert torch.equal(source.records(range(7)).images, expected.records(range(7)).images)


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path)
    assert "t10k-images-idx3-ubyte" in refused(tmp_path, "test")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert "train-labels-idx1-ubyte" in refused(tmp_path)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("change", ["empty", "in the header", "after the header", "one short", "one long"])
def test_a_wrong_length_is_told_with_both_counts(tmp_path, which, packed, change):
    write(tmp_path)
    path = tmp_path / NAMES["train"][which]
    whole = path.read_bytes()
    header = (16, 8)[which]
    length = {"empty": 0, "in the header": header - 1, "after the header": header, "one short": len(whole) - 1,
              "one long": len(whole) + 1}[change]  # fmt: skip
    changed = (whole + b"x")[:length]
    if packed:
        path.unlink()
        path = path.with_name(f"{path.name}.gz")
        changed = gzip.compress(changed)
    path.write_bytes(changed)
    message = refused(tmp_path)
    assert message.startswith(f"{path} has {length} bytes")
    assert re.search(rf"\b{header if length < header else len(whole)}\b", message)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_gzip_file_cut_off_is_named(tmp_path, share):
    write(tmp_path)
    plain = tmp_path / "train-images-idx3-ubyte"
    packed = gzip.compress(plain.read_bytes())
    plain.unlink()
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(packed[: int(len(packed) * share)])
    message = refused(tmp_path)
    assert message.startswith(f"{path} ({int(len(packed) * share)} bytes) is truncated or damaged")


def test_a_gzip_file_that_is_none_is_named(tmp_path):
    write(tmp_path)
    plain = tmp_path / "train-images-idx3-ubyte"
    plain.rename(tmp_path / "train-images-idx3-ubyte.gz")
    assert "train-images-idx3-ubyte.gz" in refused(tmp_path)


@pytest.mark.parametrize(
    "magic", [0x00000801, 0x00000D03, 0x3C68746D], ids=["labels for images", "floats", "a web page"]
)
def test_a_wrong_magic_number_is_told(tmp_path, magic):
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">I", magic) + path.read_bytes()[4:])
    message = refused(tmp_path)
    assert str(path) in message
    assert f"0x{magic:08x}" in message
    assert "0x00000803" in message


def test_an_empty_set_is_refused(tmp_path):
    write(tmp_path, count=0)
    assert "0 x 3 x 5" in refused(tmp_path)


def test_different_counts_of_images_and_labels_are_told(tmp_path):
    write(tmp_path, labels=[1, 2, 3])
    message = refused(tmp_path)
    assert "7 images" in message
    assert "3 labels" in message


def test_a_label_out_of_range_names_file_record_and_value(tmp_path):
    write(tmp_path, labels=[0, 9, 1, 2, 26, 3, 255])
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'train-labels-idx1-ubyte'}: record 4 has label 26, expected 0 to 9")
    assert "record 6 has label 255, expected 0 to 26" in refused(tmp_path, classes=27)
    assert len(Idx(root=str(tmp_path), classes=256).build("train").classes) == 256


def test_mnist_has_its_published_facts(real_data):
    root = real_data("mnist")
    counts = {
        "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    }
    for split, expected in counts.items():
        source = Idx(root=str(root)).build(split)
        assert source.shape == (1, 28, 28)
        records = source.records(range(len(source)))
        assert torch.bincount(records.targets).tolist() == expected
        packed = (root / f"{NAMES[split][0]}.gz").read_bytes()
        parsed = np.frombuffer(gzip.decompress(packed)[16:], np.uint8).reshape(-1, 1, 28, 28)
        assert np.array_equal(records.images.numpy(), parsed)
        if split == "train":
            assert parsed.mean() / 255 == pytest.approx(0.13066, abs=1e-5)
            assert records.images.double().std().item() / 255 == pytest.approx(0.30811, abs=1e-5)
