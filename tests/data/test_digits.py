"""The embedded digits, against scikit-learn's own file and published counts."""

import csv
import gzip
import io
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from engine import UsageError
from engine.plugins.data import Digits

COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # of UCI's optdigits.names, testing set


@pytest.fixture(scope="module")
def written() -> np.ndarray:
    """The rows of the file, 64 values of 0..16 and the label, read without scikit-learn's functions."""
    packed = (files("sklearn") / "datasets" / "data" / "digits.csv.gz").read_bytes()
    rows = csv.reader(io.StringIO(gzip.decompress(packed).decode()))
    return np.array([[int(float(value)) for value in row] for row in rows])


def everything(source):
    records = source.records(range(len(source)))
    return records.images.numpy(), records.targets.numpy()


def test_each_class_has_a_fifth_in_the_test_split():
    train, test = (everything(Digits(size=8).build(split)) for split in ("train", "test"))
    assert (len(train[0]), len(test[0])) == (1437, 360)
    counts = [np.bincount(targets, minlength=10) for _, targets in (train, test)]
    assert (counts[0] + counts[1]).tolist() == COUNTS
    assert np.abs(counts[1] - np.array(COUNTS) / 5).max() < 1


def test_the_split_is_the_documented_one_and_pixels_are_the_files(written):
    order = sorted(range(len(written)), key=lambda row: (written[row, 64], row))
    expected = {"test": order[::5], "train": [row for place, row in enumerate(order) if place % 5]}
    for split, rows in expected.items():
        images, targets = everything(Digits(size=8).build(split))
        stretched = np.floor(written[rows, :64] * 255 / 16 + 0.5).reshape(-1, 1, 8, 8)
        assert np.abs(images.astype(int) - stretched).max() <= 1  # halves may be rounded either way
        assert set(np.unique(images)) <= {int(v * 255 / 16 + r) for v in range(17) for r in (0, 0.5)}
        assert targets.tolist() == written[rows, 64].tolist()


@pytest.mark.parametrize("size", [16, 24])
def test_enlarging_agrees_with_pillow(size):
    small, _ = everything(Digits(size=8).build("test"))
    large, _ = everything(Digits(size=size).build("test"))
    assert large.shape == (360, 1, size, size)
    for before, after in zip(small[:20, 0], large[:20, 0], strict=True):
        pillow = Image.fromarray(before.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(pillow) - after).max() <= 1


def test_a_size_that_is_no_multiple_of_eight_is_refused():
    with pytest.raises(UsageError, match=r"^data\.size=20: must be a multiple of 8"):
        Digits(size=20).build("train")


def test_default_shape_and_classes():
    source = Digits().build("test")
    assert source.shape == (1, 16, 16)
    assert list(source.classes) == list("0123456789")
