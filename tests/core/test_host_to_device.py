"""Batches on their way to a device: queued beside the computation, waited for on the device, kept while in use."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import Batch, Records, UsageError
from engine.host_to_device import Copies, Layout, Sent, copy_stream
from engine.interfaces import Augmentation, Source
from engine.loader import Loader, Position, TestLoader
from engine.randomness import Key

CUDA = torch.device("cuda", 0)


class Bytes(Source):
    """Every byte there is, in images of 4 x 4."""

    classes = ("a", "b")
    shape = (1, 4, 4)
    fingerprint = "bytes"

    def __len__(self) -> int:
        return 64

    def records(self, indices: Any) -> Records:
        if 60 in indices:
            raise UsageError("record 60 is broken")
        rows = torch.tensor(list(indices))
        images = (rows[:, None] * 16 + torch.arange(16)).to(torch.uint8).reshape(-1, 1, 4, 4)
        return Records("raw", images, rows % 2)


class Halved(Augmentation):
    """Makes numbers of pixels, on the host."""

    def apply(self, images: Tensor, targets: Tensor, parameters: Any) -> tuple[Tensor, Tensor]:
        return images.float() / 2, targets

    def test(self, images: Tensor) -> Tensor:
        return images.float() / 2


class Gpu:
    """A GPU that is the CPU: notes what is pinned, copied and kept, by whom, on which stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, host: Any) -> None:
        self.host, self.done, self.pinned = host, [], []
        original = torch.Tensor.to

        def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if args and args[0] == CUDA:
                assert kwargs == {"non_blocking": True}
                assert any(tensor is pinned for pinned in self.pinned), "from other memory the host would wait"
                self.note("copy", tensor.dtype)
                return tensor.clone()
            return original(tensor, *args, **kwargs)

        def pin(tensor: Tensor) -> Tensor:
            self.pinned.append(tensor.clone())
            return self.pinned[-1]

        monkeypatch.setattr(torch.Tensor, "to", to)
        monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.note("keep", stream.name))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("the host must not wait"))

    def note(self, *what: Any) -> None:
        self.done.append((*what, self.host.current.name, threading.current_thread() is threading.main_thread()))


@pytest.fixture
def gpu(monkeypatch, host) -> Gpu:
    return Gpu(monkeypatch, host)


def loader(augmentations: Any = None, threads: int = 0, **settings: Any) -> Loader:
    given = {"batch": 4, "accumulate": 2, "layout": Layout(CUDA), "threads": threads, **settings}
    return Loader(Bytes(), augmentations or {}, Key.of(0), **given)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_copies_go_to_the_loaders_stream_and_the_trainings_waits_for_their_event(gpu, host, threads):
    stream = loader(threads=threads, prefetch=3).steps(Position())
    handed = [next(stream) for _ in range(2)]
    stream.close()
    assert all(len(step.batches) == 2 for step in handed)
    copies = [entry for entry in gpu.done if entry[0] == "copy"]
    assert {entry[2] for entry in copies} == {"side 1"}
    assert {entry[3] for entry in copies} == {threads == 0}
    waits = [entry for entry in host.log if entry[0] == "wait"]
    assert [entry[1] for entry in waits] == ["default"] * 2, "one wait a step, of the training's stream"
    assert len({entry[2] for entry in waits}) == 2
    assert {entry[2].split(" of ")[1] for entry in waits} == {"side 1"}
    kept = [entry for entry in gpu.done if entry[0] == "keep"]
    assert kept == [("keep", "default", "default", True)] * 8, "images and targets of two batches, two steps"


@pytest.mark.parametrize("threads", [0, 2])
def test_the_event_is_recorded_after_the_copies_it_stands_for(monkeypatch, gpu, host, threads):
    order: list[str] = []
    note = gpu.note
    monkeypatch.setattr(gpu, "note", lambda *what: (order.append(what[0]), note(*what)))
    host.log = Order(order)
    stream = loader(threads=threads, prefetch=1).steps(Position())
    next(stream)
    stream.close()
    assert order[:10] == ["copy"] * 4 + ["event", "wait"] + ["keep"] * 4


class Order(list):
    """Tells what is appended to somebody else too."""

    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self.told = told

    def append(self, entry: tuple[str, ...]) -> None:
        super().append(entry)
        self.told.append(entry[0])


def test_a_test_split_goes_the_same_way(gpu, host):
    source = Bytes()
    batches = TestLoader(source, {}, batch=16, layout=Layout(CUDA), threads=2)
    handed = list(islice(batches, 3))
    assert len([entry for entry in host.log if entry[0] == "wait"]) == 3
    assert {entry[2] for entry in gpu.done if entry[0] == "copy"} == {"side 1"}
    assert len([entry for entry in gpu.done if entry[0] == "keep"]) == 6
    plain = TestLoader(source, {}, batch=16, layout=Layout(torch.device("cpu")))
    assert all(torch.equal(one.images, other.images) for one, other in zip(handed, plain, strict=False))


def test_a_record_that_cannot_be_read_is_told_at_its_turn(gpu):
    with pytest.raises(UsageError, match="record 60 is broken"):
        list(TestLoader(Bytes(), {}, batch=16, layout=Layout(CUDA), threads=2))


def test_pixels_travel_as_bytes_and_numbers_as_they_are(gpu):
    next(loader(accumulate=1).steps(Position()))
    assert [entry[1] for entry in gpu.done if entry[0] == "copy"] == [torch.uint8, torch.int64]
    gpu.done.clear()
    next(loader({"halved": Halved()}, accumulate=1, layout=Layout(CUDA, torch.float64)).steps(Position()))
    assert [entry[1] for entry in gpu.done if entry[0] == "copy"] == [torch.float64, torch.int64]


def every_byte() -> Batch:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 4, 4, 4)
    return Batch(images, torch.arange(4), torch.arange(4))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_pixel_is_the_nearest_float32_to_its_255th_part(dtype, channels_last):
    placed = Layout(torch.device("cpu"), dtype, channels_last).place(every_byte()).images
    exact = np.array([float(np.float32(Fraction(value, 255).__float__())) for value in range(256)])
    assert torch.equal(placed.double().flatten(), torch.from_numpy(exact).to(dtype).double())
    assert placed.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_multiplying_with_the_reciprocal_would_round_otherwise():
    """As torch's CUDA kernel does for a divisor from the host; dividing by a tensor does not."""
    pixels = torch.arange(256, dtype=torch.float32)
    reciprocal = torch.tensor(1.0, dtype=torch.float32) / 255
    assert not torch.equal(pixels * reciprocal, pixels / 255)
    assert torch.equal(pixels / torch.full((), 255.0), pixels / 255)


def test_without_a_gpu_there_is_neither_stream_nor_event(monkeypatch):
    for name in ("Stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("there is no GPU"))
    layout = Layout(torch.device("cpu"))
    assert copy_stream(layout.device) is None
    copies = Copies(layout, None, ahead=1)
    for number in range(3):
        batches, sent = copies.send(number, [every_byte()])
        assert sent == Sent()
        copies.hand_over(batches, sent)


@pytest.mark.parametrize(("threads", "prefetch"), [(0, 1), (1, 1), (3, 1), (2, 3)])
def test_copies_wait_until_the_device_is_through_with_a_step_before(monkeypatch, gpu, host, threads, prefetch):
    """Step n - prefetch - 2 is over before step n is copied: whoever copies waits, not the training thread."""
    waiting: list[bool] = []
    host.before_waiting = lambda event: waiting.append(threading.current_thread() is threading.main_thread())
    stream = loader(threads=threads, prefetch=prefetch, accumulate=1).steps(Position())
    for _ in range(12):
        next(stream)
    stream.close()
    consumed = [name for what, name, *_ in host.log if what == "event" and name.endswith("default")]
    assert len(consumed) == 11, "one a step, when the next is handed over"
    waited = [entry[1] for entry in host.log if entry[0] == "host waits"]
    copied = len([entry for entry in gpu.done if entry[0] == "copy"]) // 2
    assert sorted(waited) == sorted(consumed[: copied - prefetch - 2])
    assert set(waiting) == {threads == 0}


def test_no_more_is_copied_while_the_device_does_nothing(gpu, host):
    over = threading.Event()
    host.before_waiting = lambda event: over.wait(60)
    stream = loader(threads=2, prefetch=2, accumulate=1).steps(Position())
    for _ in range(4):  # steps 0 to 3 wait for none before them; step 4 does, in its thread
        next(stream)
    assert len([entry for entry in gpu.done if entry[0] == "copy"]) == 4 * 2
    over.set()
    next(stream)
    stream.close()


def test_waiting_for_the_device_is_not_waiting_for_data(monkeypatch, gpu, host):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    host.before_waiting = lambda event: now.__setitem__(0, now[0] + 100.0)
    records = Bytes.records
    monkeypatch.setattr(
        Bytes, "records", lambda self, indices: (now.__setitem__(0, now[0] + 1.0), records(self, indices))[1]
    )
    batches = loader(prefetch=1, accumulate=1)
    stream = batches.steps(Position())
    for _ in range(10):
        next(stream)
    assert now[0] == 10 * 1.0 + 7 * 100.0
    assert batches.waited == 10 * 1.0


@pytest.mark.parametrize(
    ("held", "begun", "seconds"), [((1.0, 5.0), 3.0, 2.0), ((3.5, 5.0), 3.0, 1.5), ((1.0, 2.0), 3.0, 0.0)]
)
def test_what_counts_as_the_devices_time_is_within_the_wait(held, begun, seconds):
    assert Sent(None, held).held_since(begun) == seconds
