"""Batches on their way to the device, beside the computation.

Whoever prepares a batch (a loader's thread, or the training's own) also pins it and queues its copy, on a stream that
belongs to the loader, so that the copy goes on while kernels run on the training's stream. That one waits, on the
device, for the event that follows the copies; the training thread waits for nothing.

A host that runs ahead would fill the device with batches. So before it copies a step's batches, their thread waits
until the device has got through with those of some steps before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.interfaces import Batch
from engine.profiling import named_range


@dataclass(slots=True)
class Unfinished(Batch):
    """A batch that the device has to finish: what travels is what ``finish`` makes images and targets of there."""

    finish: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Layout:
    """In what form batches are handed over. augment_on: where augmentations run, as ``data.augment_on``."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    augment_on: str = "host"

    def place(self, batch: Batch) -> Batch:
        """Return the batch on the device, in the layout's type and memory order; copies go to the current stream."""
        return self.send(self.prepare(batch))

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch as it is to be sent: pinned, and in its form, unless its images are bytes still.

        Those no augmentation made numbers of: a quarter of the bytes travel. What the device is to finish stays as it
        is.
        """
        if isinstance(batch, Unfinished):
            images, targets = self._pinned(batch.images), self._pinned(batch.targets)
            return Unfinished(images, targets, batch.samples, batch.finish)
        images, targets = batch.images, batch.targets
        images = images if images.dtype == torch.uint8 else self._formed(images)
        targets = targets.to(self.dtype) if targets.is_floating_point() else targets
        return Batch(self._pinned(images), self._pinned(targets), batch.samples)

    def send(self, batch: Batch) -> Batch:
        """Return a prepared batch on the device; copies go to the current stream."""
        with named_range("copy to device"):
            images, targets = (t.to(self.device, non_blocking=True) for t in (batch.images, batch.targets))
            if isinstance(batch, Unfinished):
                images, targets = batch.finish(images, targets)
                targets = targets.to(self.dtype) if targets.is_floating_point() else targets
                images = images if images.dtype == torch.uint8 else self._formed(images)
            if images.dtype == torch.uint8:
                images = self._formed(_unit_floats(images))
            return Batch(images, targets, batch.samples)

    def _formed(self, images: Tensor) -> Tensor:
        images = images.to(self.dtype)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def _pinned(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda" or tensor.is_cuda:
            return tensor
        if 0 in tensor.stride():
            tensor = tensor.contiguous()  # a broadcast view cannot be pinned
        return tensor.pin_memory()  # from elsewhere a copy would make the host wait


def _unit_floats(pixels: Tensor) -> Tensor:
    """Return bytes as float32 from 0 to 1, the same numbers on every device."""
    floats = pixels.to(torch.float32)
    if not floats.is_cuda:
        return floats.div_(255)
    # By a number from the host torch's CUDA kernel would multiply with its reciprocal, which rounds otherwise.
    return floats.div_(torch.full((), 255.0, device=floats.device))


@dataclass(frozen=True)
class Sent:
    """How a step's batches were sent: the event that follows their copies, and when their thread waited before."""

    copied: torch.cuda.Event | None = None
    held: tuple[float, float] = (0.0, 0.0)  # from when to when, by time.perf_counter()

    def held_since(self, begun: float) -> float:
        """Return for how many seconds since ``begun`` it was the device that batches waited for."""
        return max(0.0, self.held[1] - max(self.held[0], begun))


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream for a loader's copies; None for a CPU, where nothing is copied."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


class Copies:
    """The copies of one pass over a loader, whose steps are numbered from 0; without a stream it only forms batches.

    ``ahead``: the copies of step n wait until the device is through with step n - ``ahead``. That step must have been
    handed over, and the next one too, before step n is sent.
    """

    def __init__(self, layout: Layout, stream: torch.cuda.Stream | None, ahead: int) -> None:
        self._layout, self._stream, self._ahead = layout, stream, ahead
        self._consumed: dict[int, torch.cuda.Event] = {}  # by the number of a step, once the one after is handed over
        self._handed_over = 0

    def send(self, number: int, batches: Sequence[Batch]) -> tuple[list[Batch], Sent]:
        """Return a step's prepared batches on the device, their copies queued on the loader's stream. Any thread."""
        if self._stream is None:
            return [self._layout.send(batch) for batch in batches], Sent()
        begun = time.perf_counter()
        consumed = self._consumed.pop(number - self._ahead, None)
        if consumed is not None:
            with named_range("wait for the GPU"):
                consumed.synchronize()
        held = begun, time.perf_counter()
        with torch.cuda.stream(self._stream):  # it also makes the device this thread's current one
            sent = [self._layout.send(batch) for batch in batches]
            return sent, Sent(self._stream.record_event(), held)

    def hand_over(self, batches: Sequence[Batch], sent: Sent) -> None:
        """Give the next step's batches to the current stream: it waits for them, on the device, and keeps their memory.

        What was queued there before is all that uses the batches of the step before.
        """
        if sent.copied is None:
            return
        current = torch.cuda.current_stream(self._layout.device)
        if self._handed_over:
            consumed = torch.cuda.Event(blocking=True)  # whoever waits for it sleeps
            consumed.record(current)
            self._consumed[self._handed_over - 1] = consumed
        self._handed_over += 1
        current.wait_event(sent.copied)
        for batch in batches:
            # The allocator knows them as the copy stream's, and would let that write the next batch there at once.
            batch.images.record_stream(current)
            batch.targets.record_stream(current)
