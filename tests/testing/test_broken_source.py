"""check_source names the promise that a broken source breaks."""

from __future__ import annotations

import io
import random
import time
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from engine import Data, Records
from engine.interfaces import Source
from engine.testing import BrokenPromise, check_source


class Sound(Source):
    classes = ("a", "b")
    shape = (1, 4, 5)
    fingerprint = "sound"
    length = 30

    def __init__(self):
        self.images = torch.arange(self.length * 20).remainder(251).to(torch.uint8).view(-1, *self.shape)
        self.targets = torch.arange(self.length) % 2

    def __len__(self):
        return self.length

    def records(self, indices):
        rows = torch.as_tensor(list(indices))
        return Records("raw", self.images[rows], self.targets[rows])


class Regression(Sound):
    classes = ()

    def records(self, indices):
        rows = torch.as_tensor(list(indices))
        return Records("tensor", self.images[rows].float(), torch.stack([rows, rows], 1).float())


class Encoded(Sound):
    def records(self, indices):
        return Records("encoded", [png(self.images[i]) for i in indices], self.targets[list(indices)])


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(buffer, "PNG")
    return buffer.getvalue()


class OffByOne(Sound):
    def records(self, indices):
        return super().records([index + 1 for index in indices])


class TooLong(Sound):
    def __len__(self):
        return self.length + 1


class Sorts(Sound):
    def records(self, indices):
        return super().records(sorted(indices))


class LeavesOutRepeats(Sound):
    def records(self, indices):
        return super().records(list(dict.fromkeys(indices)))


class AddsTheBatch(Sound):
    def records(self, indices):
        records = super().records(indices)
        return Records("raw", records.images + len(indices), records.targets)


class Augments(Sound):
    def records(self, indices):
        records = super().records(indices)
        return Records("raw", records.images.flip(3) if random.random() < 0.5 else records.images, records.targets)


class TargetsDoNotFollow(Sound):
    def records(self, indices):
        return Records("raw", self.images[list(indices)], self.targets[sorted(indices)])


class ListsOnly(Sound):
    def records(self, indices):
        return super().records(indices.copy())


class NotThreadSafe(Sound):
    """Keeps the request in an attribute, as a reader with a file position would."""

    def records(self, indices):
        self.asked = list(indices)
        time.sleep(0)  # another thread may run, as it may at any file access
        return super().records(self.asked)


class FailsInThreads(Sound):
    """Like a file whose position others move."""

    busy = False

    def records(self, indices):
        if self.busy:
            raise OSError("seek while reading")
        self.busy = True
        time.sleep(0.001)
        self.busy = False
        return super().records(indices)


class WrongShape(Sound):
    shape = (1, 4, 5)

    def records(self, indices):
        records = super().records(indices)
        return Records("raw", records.images.transpose(2, 3), records.targets)


class WrongEncoding(Sound):
    def records(self, indices):
        records = super().records(indices)
        return Records("raw", records.images.float(), records.targets)


class UnknownEncoding(Sound):
    def records(self, indices):
        records = super().records(indices)
        return Records("jpeg", records.images, records.targets)


class Undecodable(Encoded):
    def records(self, indices):
        return Records("encoded", [b"no image"] * len(indices), self.targets[list(indices)])


class LabelsFromOne(Sound):
    def records(self, indices):
        records = super().records(indices)
        return Records("raw", records.images, records.targets + 1)


class Int32Labels(Sound):
    def records(self, indices):
        records = super().records(indices)
        return Records("raw", records.images, records.targets.int())


class FlatRegression(Regression):
    def records(self, indices):
        records = super().records(indices)
        return Records("tensor", records.images, records.targets[:, 0])


class RepeatsAName(Sound):
    classes = ("a", "a")


class Empty(Sound):
    length = 0


class Nameless(Sound):
    def name_of(self, index):
        return "a record"


class NoFingerprint(Sound):
    fingerprint = ""


ALONE = "the same whatever else is asked for"


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (OffByOne, "every index from 0 to len - 1 can be read"),
        (TooLong, "every index from 0 to len - 1 can be read"),
        (Sorts, ALONE),
        (LeavesOutRepeats, r"\[n, 1, 4, 5\]"),
        (AddsTheBatch, ALONE),
        (Augments, ALONE),
        (TargetsDoNotFollow, ALONE),
        (ListsOnly, "takes any sequence of indices"),
        (NotThreadSafe, "safe to call from threads"),
        (FailsInThreads, "safe to call from threads; OSError: seek while reading"),
        (WrongShape, r"\[n, 1, 4, 5\]"),
        (WrongEncoding, 'encoding "raw": images are uint8'),
        (UnknownEncoding, "encoding is raw, tensor or encoded; jpeg"),
        (Undecodable, "decode to the source's shape"),
        (LabelsFromOne, r"not within 0..1"),
        (Int32Labels, "targets are int64"),
        (FlatRegression, r"float targets are \[n, outputs\]"),
        (RepeatsAName, "classes are names, each once"),
        (Empty, "a source has records"),
        (Nameless, "name_of names every record"),
        (NoFingerprint, "the fingerprint is a text"),
    ],
)
def test_broken_source_is_named(broken, promise):
    random.seed(0)
    with pytest.raises(BrokenPromise, match=f"^{broken.__name__} breaks a promise: .*{promise}"):
        check_source(broken())


@pytest.mark.parametrize("sound", [Sound, Regression, Encoded])
def test_sound_source_passes(sound):
    check_source(sound())


@dataclass
class Opening(Data):
    """Opens sound sources, but for one fault."""

    fault: str = ""

    def build(self, split):
        if self.fault == "no test" and split == "test":
            raise FileNotFoundError("test.bin")
        source = Sound()
        source.fingerprint = f"sound {split}"
        if split == "test":
            source.images = source.images + 1
        if self.fault == "same":
            source.fingerprint = "sound"
        elif self.fault == "random":
            source.fingerprint = str(random.random())
        elif self.fault == "classes" and split == "test":
            source.classes = ("b", "a")
        return source


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("same", "fingerprint changes when the records change, and only then; train and test hold different"),
        ("random", "fingerprint changes when the records change, and only then; train opened twice"),
        ("classes", "both splits have the same classes"),
        ("no test", r'build\(\) opens "train" and "test"; FileNotFoundError'),
    ],
)
def test_broken_options_are_named(fault, promise):
    with pytest.raises(BrokenPromise, match=f"^Opening breaks a promise: .*{promise}"):
        check_source(Opening(fault=fault))


def test_sound_options_pass():
    check_source(Opening())
