"""The ordered, prefetching, augmenting reader of a source.

The stream of training samples is endless: epoch after epoch, each in its own random order (``engine.order``),
numbered from 0. A position in that stream says all there is to know, so the batches of step k are a pure function of
(seed, position): the same for any number of threads or worker processes, prefetch depth and world size, and a resume
costs nothing. The last samples of an epoch that do not fill a step are left out of that epoch (each epoch leaves out
others), so that every step has the same shape.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from math import ceil, lcm
from typing import TypeVar

import torch

from engine.batches import Batches, Blocks, Maker
from engine.chain import Samples
from engine.errors import UsageError
from engine.host_to_device import Copies, Layout, Sent, copy_stream
from engine.interfaces import Augmentation, Batch, Source
from engine.order import BLOCKS, FULLY, Shuffle, order_of
from engine.preparation import Spent
from engine.profiling import named_range
from engine.randomness import Key
from engine.workers import Elsewhere, Workers

Task = TypeVar("Task")
Made = TypeVar("Made")

# The copies of a step wait for the device to be through with the step so many before, beside those prepared ahead: one
# that it computes, and one that it goes on with at once.
MORE_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run is: steps attempted, next global sample of the stream, stage, and at which step that began."""

    step: int = 0
    sample: int = 0
    stage: int = 0
    begun: int = 0


@dataclass(slots=True)
class Step:
    """What one step trains on. count: samples over all processes; epochs_done: set on an epoch's last step.

    start: where its samples and its draws are, if a strategy makes steps in another order than the stream's.
    """

    batches: Sequence[Batch]
    count: int
    epoch: int
    epochs_done: int | None
    end: Position
    spent: Spent = field(default_factory=Spent)
    start: Position | None = None


class Loader:
    """Yields the training steps of this process from any position on.

    Of each micro-batch of ``batch`` samples it has share ``rank`` of ``world``; without ``equal`` shares may differ by
    one sample. Steps are made by ``threads`` threads, or with ``workers`` by those processes, each of which opens the
    source by ``reopen``; ``close`` ends them.
    """

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
        equal: bool = True,
        shuffle: Shuffle = FULLY,
        workers: Workers | None = None,
        reopen: Callable[[], Source] | None = None,
    ) -> None:
        self.source, self.augmentations, self.shuffle = source, augmentations, shuffle
        self.batch, self.accumulate = batch, accumulate
        self.count = batch * accumulate
        self.steps_per_epoch = len(source) // self.count
        self.waited = 0.0  # seconds the training thread has waited for data, and not for the device
        self.spent = Spent()  # time of threads or workers that the batches handed over have taken
        self.whole = lcm(2, *(op.group for op in augmentations.values()))
        self._threads, self._prefetch = threads, prefetch
        self._layout, self._stream = layout, copy_stream(layout.device)
        self._rank, self._world = rank, world
        self.share = ceil(batch / world)  # samples of a micro-batch in this process, at most
        self._bounds = [rank * batch // world, (rank + 1) * batch // world]  # of this process's share
        self._order = order_of(shuffle, key, len(source))
        if self.steps_per_epoch == 0:
            raise UsageError(
                f"run.batch={batch} x run.accumulate={accumulate} needs {self.count} images a step, but the training "
                f"set has {len(source)}: choose a smaller run.batch"
            )
        if batch < world:
            raise UsageError(
                f"run.batch={batch} is fewer than one for each of {world} processes: raise run.batch, or start fewer"
            )
        if equal and batch % world:
            raise UsageError(f"run.batch={batch} cannot be shared by {world} processes: choose a multiple of {world}")
        for name, op in augmentations.items():
            if any(end % op.group for end in self._bounds):
                raise UsageError(
                    f"augment.{name} mixes groups of {op.group} images, which the {self.share} of a process's "
                    f"micro-batch do not fill: choose run.batch as a multiple of {op.group * world}"
                )
        # Single steps out of the row are made here and by themselves, so that they leave the blocks as they are.
        self._here = Batches(source, augmentations, layout, key)
        self._maker: Maker = self._here
        blocks = None
        if shuffle.kind == BLOCKS:
            under_way = ceil((prefetch + threads) * self.count / shuffle.window)
            blocks = Blocks(shuffle.block, (2 + under_way) * shuffle.mixed)
            self._maker = Batches(source, augmentations, layout, key, blocks)
        if workers is not None:
            assert reopen is not None, "a worker opens the source anew"
            self._maker = Elsewhere(workers, reopen, source, augmentations, layout, key, blocks)

    def steps(self, position: Position) -> Generator[Step]:
        """Yield steps without end, beginning at ``position``; an unreadable record raises UsageError naming it."""
        return self.steps_at(self._positions(position))

    def steps_at(self, positions: Iterable[Position], ahead: int | None = None) -> Generator[Step]:
        """Yield the steps that begin at ``positions``, which are asked for up to ``ahead`` steps before they are due.

        ahead: by default as many as steps are prepared ahead.
        """
        depth = self._prefetch if ahead is None else min(ahead, self._prefetch)
        copies = Copies(self._layout, self._stream, self._prefetch + MORE_AHEAD)
        tasks = enumerate(positions)
        for (step, sent), waited in prefetched(partial(self._sent, copies), tasks, self._threads, depth):
            self.waited += waited - sent.held_since(time.perf_counter() - waited)
            self.spent.add(step.spent)
            copies.hand_over(step.batches, sent)
            yield step

    def position_of(self, step: int, stage: int = 0) -> Position:
        """Return where step number ``step`` begins, if all before it were made one after the other."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return Position(step, epoch * len(self.source) + within * self.count, stage)

    def step_at(self, position: Position) -> Step:
        """Return the one step at ``position``, made here and now (to replay it, for instance)."""
        step = self._step(next(self._positions(position)), self._here)
        step.batches = [self._layout.send(batch) for batch in step.batches]
        return step

    def samples_of(self, epoch: int, first: int, last: int) -> Samples:
        """Return the samples at the places from ``first`` to before ``last`` of an epoch's order."""
        numbers = torch.arange(first, last) + epoch * len(self.source)
        return Samples(numbers, self._order.records(epoch)[first:last], epoch)

    def batch_of(self, samples: Samples) -> Batch:
        """Return samples, prepared as in training, here and now; any thread may ask."""
        (batch,), _ = self._here.make([samples], ())
        return self._layout.send(batch)

    def example(self) -> Batch:
        """Return two training samples, prepared as every batch is: what the model will be given."""
        samples = torch.arange(self.whole)
        whole = self.batch_of(Samples(samples, -samples % len(self.source), 0))
        return Batch(whole.images[:2], whole.targets[:2], samples[:2])

    def close(self) -> None:
        """End worker processes and reading ahead; no step may be asked for any more."""
        self._maker.close()

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
        step = self._step(start, self._maker)
        step.batches, sent = copies.send(number, step.batches)
        return step, sent

    def _step(self, start: Position, maker: Maker) -> Step:
        """Return a step, its batches prepared and not sent."""
        epoch, offset = divmod(start.sample, len(self.source))
        order, (first, last) = self._order.records(epoch), self._bounds
        samples = []
        for micro in range(0, self.count, self.batch):
            numbers = torch.arange(start.sample + micro + first, start.sample + micro + last)
            samples.append(Samples(numbers, order[offset + micro + first : offset + micro + last], epoch))
        batches, spent = maker.make(samples, self._order.ahead(epoch, offset + self.count - 1))
        ends = offset + 2 * self.count > len(self.source)
        end = Position(start.step + 1, start.sample + self.count, start.stage)
        return Step(batches, self.count, epoch, epoch + 1 if ends else None, end, spent)


class TestLoader:
    """Yields a test split once, in order, this process's share of each batch; the last batch may be smaller.

    threads, workers and reopen: as a ``Loader``'s.
    """

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
        workers: Workers | None = None,
        reopen: Callable[[], Source] | None = None,
    ) -> None:
        self.source, self._batch = source, batch
        self._here = Batches(source, augmentations, layout)
        self._maker: Maker = self._here
        if workers is not None:
            assert reopen is not None, "a worker opens the source anew"
            self._maker = Elsewhere(workers, reopen, source, augmentations, layout)
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

    def close(self) -> None:
        """End worker processes, if there are any; no batch may be asked for any more."""
        self._maker.close()

    def batch_at(self, first: int) -> Batch:
        """Return the batch that begins with record ``first``."""
        return self._layout.send(self._prepared(first, self._here))

    def _sent(self, copies: Copies, task: tuple[int, int]) -> tuple[Sequence[Batch], Sent]:
        number, first = task
        return copies.send(number, [self._prepared(first, self._maker)])

    def _prepared(self, first: int, maker: Maker) -> Batch:
        indices = torch.arange(first, min(first + self._batch, len(self.source)))
        (batch,), _ = maker.make([Samples(indices, indices, 0)], ())
        return batch


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
