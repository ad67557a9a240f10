"""CIFAR's binary files: the real ones, files written here byte by byte, and every way they can be wrong."""

import numpy as np
import pytest
import torch

from engine import UsageError
from engine.plugins.data import Cifar10, Cifar100

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def pixels_of(seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, 3072, dtype=np.uint8).tobytes()


def write(path, labels, seed=0):
    """Write a record per item of ``labels`` (a tuple of bytes each); return the pixels [n, 3, 32, 32]."""
    pixels = [pixels_of(seed + number) for number in range(len(labels))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes(label) + data for label, data in zip(labels, pixels, strict=True)))
    return np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, 3, 32, 32)


def refused(options, split="train") -> str:
    with pytest.raises(UsageError) as error:
        options.build(split)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("sub", ["", "cifar-10-batches-bin"])
def test_cifar10_reads_all_batches_in_order(tmp_path, sub, capsys):
    second = write(tmp_path / sub / "data_batch_2.bin", [(3,), (4,)], seed=10)
    first = write(tmp_path / sub / "data_batch_1.bin", [(9,), (0,), (1,)])
    test = write(tmp_path / sub / "test_batch.bin", [(5,)], seed=20)
    source = Cifar10(root=str(tmp_path)).build("train")
    records = source.records(range(5))
    assert source.shape == (3, 32, 32)
    assert np.array_equal(records.images.numpy(), np.concatenate([first, second]))
    assert records.targets.tolist() == [9, 0, 1, 3, 4]
    assert list(source.classes) == NAMES
    told = capsys.readouterr().err
    assert "2 of the 5" in told
    assert "5 training images" in told
    records = Cifar10(root=str(tmp_path)).build("test").records([0])
    assert np.array_equal(records.images.numpy(), test)
    assert records.targets.tolist() == [5]


def test_nothing_is_told_when_all_five_batches_are_there(tmp_path, capsys):
    for number in range(1, 6):
        write(tmp_path / f"data_batch_{number}.bin", [(number,)])
    assert len(Cifar10(root=str(tmp_path)).build("train")) == 5
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("labels", "column", "classes"), [("fine", 1, 100), ("coarse", 0, 20)])
def test_cifar100_has_two_kinds_of_labels(tmp_path, labels, column, classes):
    written = [(19, 99), (0, 7), (4, 0)]
    pixels = write(tmp_path / "train.bin", written)
    source = Cifar100(root=str(tmp_path), labels=labels).build("train")
    records = source.records([0, 1, 2])
    assert records.targets.tolist() == [pair[column] for pair in written]
    assert np.array_equal(records.images.numpy(), pixels)
    assert list(source.classes) == [str(number) for number in range(classes)]


def test_class_names_come_from_the_file_beside(tmp_path):
    write(tmp_path / "train.bin", [(1, 2)])
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(f"name {n} \n" for n in range(20)))
    source = Cifar100(root=str(tmp_path), labels="coarse").build("train")
    assert list(source.classes) == [f"name {n}" for n in range(20)]
    write(tmp_path / "test_batch.bin", [(1,)])
    (tmp_path / "batches.meta.txt").write_text("one\ntwo\n\n")
    assert f"{tmp_path / 'batches.meta.txt'} names 2 classes instead of 10" in refused(
        Cifar10(root=str(tmp_path)), "test"
    )


@pytest.mark.parametrize("length", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_a_truncated_cifar10_file_is_told_with_its_length(tmp_path, length):
    write(tmp_path / "data_batch_1.bin", [(1,), (2,)])
    bad = tmp_path / "data_batch_3.bin"
    write(bad, [(1,), (2,)])
    bad.write_bytes(bad.read_bytes()[:length])
    message = refused(Cifar10(root=str(tmp_path)))
    assert message.startswith(f"{bad} has {length} bytes")
    assert "3073" in message


def test_a_cifar10_file_is_no_cifar100_file(tmp_path):
    write(tmp_path / "test.bin", [(1,), (2,)])
    message = refused(Cifar100(root=str(tmp_path)), "test")
    assert message.startswith(f"{tmp_path / 'test.bin'} has 6146 bytes")
    assert "3074" in message


def test_labels_out_of_range_are_told(tmp_path):
    write(tmp_path / "test_batch.bin", [(9,), (0,), (10,), (255,)])
    message = refused(Cifar10(root=str(tmp_path)), "test")
    assert message.startswith(f"{tmp_path / 'test_batch.bin'}: record 2 has label 10, expected 0 to 9")
    write(tmp_path / "train.bin", [(3, 100)])
    assert "record 0 has label 100, expected 0 to 99" in refused(Cifar100(root=str(tmp_path)))
    write(tmp_path / "train.bin", [(3, 99), (20, 5)])
    assert "record 1 has label 20, expected 0 to 19" in refused(Cifar100(root=str(tmp_path), labels="coarse"))
    assert len(Cifar100(root=str(tmp_path)).build("train")) == 2


@pytest.mark.parametrize(
    ("options", "split", "name"),
    [(Cifar10, "train", "data_batch_1.bin"), (Cifar10, "test", "test_batch.bin"),
     (Cifar100, "train", "train.bin"), (Cifar100, "test", "test.bin")],
)  # fmt: skip
def test_a_missing_file_is_named(tmp_path, options, split, name):
    assert f"no file {name}" in refused(options(root=str(tmp_path)), split)


def test_the_real_cifar10(real_data):
    root = real_data("cifar10")
    test = Cifar10(root=str(root)).build("test")
    records = test.records(range(len(test)))
    parsed = np.fromfile(root / "test_batch.bin", np.uint8).reshape(10000, 3073)
    assert torch.bincount(records.targets).tolist() == [1000] * 10
    assert np.array_equal(records.targets.numpy(), parsed[:, 0])
    assert np.array_equal(records.images.numpy().reshape(10000, 3072), parsed[:, 1:])
    assert list(test.classes) == NAMES
    train = Cifar10(root=str(root)).build("train")
    assert (len(train), train.shape) == (20000, (3, 32, 32))
    images = train.records(range(len(train))).images.numpy()
    # The published figures are of all 50,000 images; 20,000 of them agree to about a grey level.
    assert images.mean((0, 2, 3)) == pytest.approx([125.307, 122.950, 113.865], abs=1)
    assert images.std((0, 2, 3)) == pytest.approx([62.993, 62.089, 66.705], abs=1)
