"""The ordered, prefetching, augmenting reader of a source.

The stream of training samples is endless: epoch after epoch, each in its own random order, numbered from 0.
A position in that stream says all there is to know, so the batches of step k are a pure function of
(seed, position): the same for any number of threads, prefetch depth and world size, and a resume costs
nothing. The last samples of an epoch that do not fill a step are left out of that epoch (each epoch leaves out
others), so that every step has the same shape.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from math import lcm
from typing import TypeVar

import torch
from torch import Tensor

from engine.decode import decode
from engine.errors import UsageError
from engine.host_to_device import Copies, Layout, Sent, copy_stream
from engine.interfaces import Augmentation, Batch, Source
from engine.profiling import named_range
from engine.randomness import Key, permutation

Task = TypeVar("Task")
Made = TypeVar("Made")

# The copies of a step wait for the device to be through with the step so many before, beside those prepared ahead: one
# that it computes, and one that it goes on with at once.
MORE_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run is: steps attempted, next global sample of the stream, stage."""

    step: int = 0
    sample: int = 0
    stage: int = 0


@dataclass(slots=True)
class Step:
    """What one step trains on. count: samples over all processes; epochs_done: set on an epoch's last step."""

    batches: Sequence[Batch]
    count: int
    epoch: int
    epochs_done: int | None
    end: Position


class Loader:
    """Yields the training steps of this process from any position on."""

    def __init__(
        self,
        source: Source,
        augmentations: Mapping[str, Augmentation],
        key: Key,
        *,
        batch: int,
        accumulate: int = 1,
        layout: Layout,
        threads: int = 0,
        prefetch: int = 4,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.source = source
        self.batch, self.accumulate = batch, accumulate
        self.count = batch * accumulate
        self.steps_per_epoch = len(source) // self.count
        self.waited = 0.0  # seconds the training thread has waited for data, and not for the device
        self._augmentations = {name: (op, key.at("augment", name)) for name, op in augmentations.items()}
        self._threads, self._prefetch = threads, prefetch
        self._layout, self._stream = layout, copy_stream(layout.device)
        self._rank, self._world = rank, world
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(key.at("order", epoch), len(source)))
        if self.steps_per_epoch == 0:
            raise UsageError(
                f"run.batch={batch} x run.accumulate={accumulate} needs {self.count} images a step, but the training "
                f"set has {len(source)}: choose a smaller run.batch"
            )
        if batch % world:
            raise UsageError(f"run.batch={batch} cannot be shared by {world} processes: choose a multiple of {world}")
        for name, op in augmentations.items():
            if (batch // world) % op.group:
                raise UsageError(
                    f"augment.{name} mixes groups of {op.group} images, which the {batch // world} of a process's "
                    f"micro-batch do not fill: choose run.batch as a multiple of {op.group * world}"
                )

    def steps(self, position: Position) -> Iterator[Step]:
        """Yield steps without end, beginning at ``position``; an unreadable record raises UsageError naming it."""
        copies = Copies(self._layout, self._stream, self._prefetch + MORE_AHEAD)
        tasks = enumerate(self._positions(position))
        for (step, sent), waited in prefetched(partial(self._sent, copies), tasks, self._threads, self._prefetch):
            self.waited += waited - sent.held_since(time.perf_counter() - waited)
            copies.hand_over(step.batches, sent)
            yield step

    def step_at(self, position: Position) -> Step:
        """Return the one step at ``position``, made here and now (to replay it, for instance)."""
        step = self._step(next(self._positions(position)))
        step.batches = [self._layout.send(batch) for batch in step.batches]
        return step

    def example(self) -> Batch:
        """Return two training samples, prepared as every batch is: what the model will be given."""
        whole = lcm(2, *(op.group for op, _ in self._augmentations.values()))
        batch = self._augmented([-row % len(self.source) for row in range(whole)], torch.arange(whole))
        return self._layout.place(Batch(batch.images[:2], batch.targets[:2], batch.samples[:2]))

    def _positions(self, position: Position) -> Iterator[Position]:
        length = len(self.source)
        while True:
            left = length - position.sample % length
            if left < self.count:  # the rest of the epoch does not fill a step
                position = Position(position.step, position.sample + left, position.stage)
            yield position
            position = Position(position.step + 1, position.sample + self.count, position.stage)

    def _sent(self, copies: Copies, task: tuple[int, Position]) -> tuple[Step, Sent]:
        number, start = task
        step = self._step(start)
        step.batches, sent = copies.send(number, step.batches)
        return step, sent

    def _step(self, start: Position) -> Step:
        """Return a step, its batches prepared and not sent."""
        epoch, offset = divmod(start.sample, len(self.source))
        share = self.batch // self._world
        batches = []
        for micro in range(self.accumulate):
            first = micro * self.batch + self._rank * share
            samples = torch.arange(start.sample + first, start.sample + first + share)
            indices = self._order(epoch)[offset + first : offset + first + share]
            batches.append(self._layout.prepare(self._augmented(indices.tolist(), samples)))
        last = offset + 2 * self.count > len(self.source)
        end = Position(start.step + 1, start.sample + self.count, start.stage)
        return Step(batches, self.count, epoch, epoch + 1 if last else None, end)

    def _augmented(self, indices: Sequence[int], samples: Tensor) -> Batch:
        images, targets = read(self.source, indices)
        for augmentation, key in self._augmentations.values():
            shape = (images.shape[1], images.shape[2], images.shape[3])
            images, targets = augmentation.apply(images, targets, augmentation.draw(key, samples, shape))
        return Batch(images, targets, samples)


class TestLoader:
    """Yields a test split once, in order, this process's share of each batch; the last batch may be smaller."""

    __test__ = False  # its name is no pytest class

    def __init__(
        self,
        source: Source,
        augmentations: Mapping[str, Augmentation],
        *,
        batch: int,
        layout: Layout,
        threads: int = 0,
        prefetch: int = 4,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.source = source
        self._augmentations, self._batch = list(augmentations.values()), batch
        self._threads, self._prefetch = threads, prefetch
        self._layout, self._stream = layout, copy_stream(layout.device)
        self._rank, self._world = rank, world

    def __iter__(self) -> Iterator[Batch]:
        firsts = range(self._rank * self._batch, len(self.source), self._world * self._batch)
        copies = Copies(self._layout, self._stream, self._prefetch + MORE_AHEAD)
        tasks = enumerate(firsts)
        for ((batch,), sent), _ in prefetched(partial(self._sent, copies), tasks, self._threads, self._prefetch):
            copies.hand_over([batch], sent)
            yield batch

    def batch_at(self, first: int) -> Batch:
        """Return the batch that begins with record ``first``."""
        return self._layout.send(self._prepared(first))

    def _sent(self, copies: Copies, task: tuple[int, int]) -> tuple[Sequence[Batch], Sent]:
        number, first = task
        return copies.send(number, [self._prepared(first)])

    def _prepared(self, first: int) -> Batch:
        indices = range(first, min(first + self._batch, len(self.source)))
        images, targets = read(self.source, indices)
        for augmentation in self._augmentations:
            images = augmentation.test(images)
        return self._layout.prepare(Batch(images, targets, torch.tensor(indices)))


def read(source: Source, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the images [n, c, h, w] and targets of records, decoded to the source's shape.

    Raises UsageError naming a record that cannot be decoded, or whose class does not exist.
    """
    records = source.records(indices)
    _require_classes(source, indices, records.targets)
    if isinstance(records.images, Tensor):
        return records.images, records.targets
    images = torch.empty((len(indices), *source.shape), dtype=torch.uint8)
    for place, (index, data) in enumerate(zip(indices, records.images, strict=True)):
        try:
            images[place] = decode(data, source.shape)
        except UsageError as error:
            raise UsageError(f"{source.name_of(index)} {error}") from error
    return images, records.targets


def _require_classes(source: Source, indices: Sequence[int], targets: Tensor) -> None:
    # Here the targets are in the host's memory still; on a GPU a wrong one would be an assertion in some later kernel.
    if not source.classes or targets.is_floating_point() or len(targets) == 0:
        return
    wrong = (targets < 0) | (targets >= len(source.classes))
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise UsageError(
            f"{source.name_of(indices[place])} is of class {int(targets[place])}, but the classes are 0 to "
            f"{len(source.classes) - 1}"
        )


def prefetched(
    make: Callable[[Task], Made], tasks: Iterable[Task], threads: int, depth: int
) -> Iterator[tuple[Made, float]]:
    """Yield ``(make(task), seconds waited for it)`` in order, up to ``depth`` of them made ahead by threads.

    With 0 threads each is made when asked for. An exception in ``make`` is raised at its turn.
    """
    if threads == 0:
        for task in tasks:
            begun = time.perf_counter()
            with named_range("wait for data"):
                made = make(task)
            yield made, time.perf_counter() - begun
        return
    upcoming = iter(tasks)
    queue: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="engine-loader")
    try:
        while True:
            for task in islice(upcoming, depth - len(queue)):
                queue.append(pool.submit(make, task))
            if not queue:
                return
            begun = time.perf_counter()
            with named_range("wait for data"):
                made = queue.popleft().result()
            yield made, time.perf_counter() - begun
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
