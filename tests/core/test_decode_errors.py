"""A file that cannot be decoded is named, wherever in a run it turns up; ``decode`` itself is tested with the data."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import Tiny

from engine import Data, Records, UsageError
from engine.interfaces import Source
from engine.loader import Layout, Loader, Position, TestLoader, prefetched
from engine.preparation import read
from engine.randomness import Key

LAYOUT = Layout(torch.device("cpu"))


def picture(seed: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


class Files(Source):
    """Twenty small pictures, of which some may be damaged."""

    classes = ("a", "b")
    shape = (1, 8, 8)
    fingerprint = "files"

    def __init__(self, damaged: dict[int, bytes]) -> None:
        self.data = [damaged.get(index, picture(index)) for index in range(20)]

    def __len__(self) -> int:
        return len(self.data)

    def records(self, indices: Sequence[int]) -> Records:
        return Records("encoded", [self.data[i] for i in indices], torch.tensor([i % 2 for i in indices]))

    def name_of(self, index: int) -> str:
        return f"folder/{index}.png"


DAMAGED = {
    "empty": (b"", "not a JPEG or PNG"),
    "text": (b"hello", "not a JPEG or PNG"),
    "gif": (picture(0, "GIF"), "not a JPEG or PNG"),
    "cut": (picture(0)[:60], ".+"),
    "altered": (picture(0)[:50] + b"?" * 9 + picture(0)[59:], ".+"),
}


@pytest.mark.parametrize(("data", "reason"), DAMAGED.values(), ids=DAMAGED.keys())
def test_the_file_is_named_with_the_reason(data, reason):
    with pytest.raises(UsageError, match=rf"^folder/7.png cannot be decoded \({reason}\); delete or replace it$"):
        read(Files({7: data}), range(20))


def test_sound_files_are_read_in_their_order():
    images, targets = read(Files({7: b""}), [3, 0, 3, 19])
    assert targets.tolist() == [1, 0, 1, 1]
    expected = [np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8) for seed in (3, 0, 3, 19)]
    assert np.array_equal(images[:, 0].numpy(), np.stack(expected))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_loaders_give_the_batches_before_the_bad_one_and_leave_no_thread(threads):
    running = threading.active_count()
    batches = iter(TestLoader(Files({13: b""}), {}, batch=4, layout=LAYOUT, threads=threads, prefetch=4))
    assert [next(batches).samples.tolist()[0] for _ in range(3)] == [0, 4, 8]
    with pytest.raises(UsageError, match=r"^folder/13\.png cannot be decoded"):
        next(batches)
    assert threading.active_count() == running


def test_training_samples_are_named_by_their_record_not_by_their_place_in_the_stream():
    loader = Loader(Files({13: b""}), {}, Key.of(0), batch=20, layout=LAYOUT)
    with pytest.raises(UsageError, match=r"^folder/13\.png "):
        next(loader.steps(Position()))


def test_an_exception_comes_at_its_turn():
    def make(task: int) -> int:
        if task == 5:
            raise UsageError("five")
        return task * task

    results = prefetched(make, range(100), threads=3, depth=8)
    made = [next(results)[0] for _ in range(5)]
    assert made == [0, 1, 4, 9, 16]
    with pytest.raises(UsageError, match="five"):
        next(results)


@dataclass
class Given(Data):
    """Sources made by a test."""

    damaged: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def build(self, split: str) -> Source:
        return Files(self.damaged.get(split, {}))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_run_ends_naming_the_file(make, split, threads):
    data = Given(threads=threads, damaged={split: {13: b"hello"}})
    run = make("run", data=data, model=Tiny(width=2), augment=[], run={"batch": 4, "epochs": 1})
    with pytest.raises(UsageError, match=r"^folder/13\.png cannot be decoded \(not a JPEG or PNG\)"):
        run.fit()
    assert run.outcome == "failed"
