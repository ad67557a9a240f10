"""Weights that are the same in every bit for any number of processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from math import ceil

import torch
from torch import Tensor, nn

from engine import Batch, UsageError
from engine.distributed.group import Group
from engine.distributed.together import Together
from engine.loader import Loader, Position, Step

from .communication import gradient_type


class Canonical(Together):
    """Every micro-batch is ``shards`` fixed shards, each of which is computed by itself, wherever it is computed.

    A shard is treated as if it were a process: BatchNorm normalises over its samples, its running statistics begin
    every step with those that all have and are averaged after it, and draws depend on its number. What shards give is
    added up in their order. So weights, buffers and optimiser state do not depend on how many processes share the
    shards, where kernels, libraries and kind of machine are the same. That takes ``shards`` small passes instead of a
    large one; and as sums depend on the number of threads, that is fixed while it trains.
    """

    equal_shares = True

    def __init__(self, shards: int, threads: int = 0, verify_every: int = 0) -> None:
        super().__init__(verify_every)
        if shards % self.world:
            raise UsageError(
                f"parallel.canonical={shards}: so many shards cannot be shared by {self.world} processes; choose a "
                "multiple"
            )
        self.fixed_shards = shards
        self._threads = threads or 1
        self._own = range(self.rank * shards // self.world, (self.rank + 1) * shards // self.world)
        self._trained: list[nn.Parameter] = []
        self._buffers: list[Tensor] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        """Take note of what trains; the model stays as it is."""
        self.replicated = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._buffers = list(model.buffers())
        return model

    def shard(self, model: nn.Module) -> nn.Module:
        """Leave the model as it is; layers get a shard's samples. UsageError for a batch that shards cannot share."""
        batch = self.example[0] * self.world
        if batch % self.fixed_shards:
            raise UsageError(
                f"run.batch={batch} cannot be cut into parallel.canonical={self.fixed_shards} shards of one size: "
                "choose a multiple"
            )
        self.example = (batch // self.fixed_shards, *self.example[1:])
        return model

    def steps(self, loader: Loader, position: Position) -> Generator[Step]:
        """Yield the loader's steps; the number of compute threads is fixed until the last."""
        with threads_fixed(self._threads), closing(super().steps(loader, position)) as steps:
            yield from steps

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Run every micro-batch's part of a shard forward and backward, one shard after the other."""
        gradients = [Shards(self.group, len(self._own), alike, dtype) for dtype, alike in by_type(self._trained)]
        floats = [buffer for buffer in self._buffers if buffer.is_floating_point()]
        statistics = [Shards(self.group, len(self._own), alike, dtype) for dtype, alike in by_type(floats)]
        begun = [buffer.clone() for buffer in self._buffers]
        reached = torch.zeros(len(self._trained), device=weight.device)
        total = torch.zeros((), dtype=weight.dtype, device=weight.device)
        for place, shard in enumerate(self._own):
            for buffer, value in zip(self._buffers, begun, strict=True):
                buffer.copy_(value)
            for index, batch in enumerate(batches):
                loss = loss_of(part(batch, place, len(self._own)), index * self.fixed_shards + shard)
                torch.autograd.backward(loss, weight)
                total += loss.detach()
            for each in gradients:
                each.put(place, [parameter.grad for parameter in each.like])
            for each in statistics:
                each.put(place, each.like)
            reached += torch.tensor([float(p.grad is not None) for p in self._trained], device=reached.device)
            for parameter in self._trained:
                parameter.grad = None
        for each in statistics:
            for buffer, value in zip(each.like, each.combined(averaged), strict=True):
                buffer.copy_(value)
        used: dict[Tensor, float] = dict(
            zip(self._trained, self.group.all_reduce(reached, "reached").tolist(), strict=True)
        )
        for each in gradients:
            for trained, value in zip(each.like, each.combined(added), strict=True):
                trained.grad = value if used[trained] else None
        return total

    def describe(self) -> str:
        """Return how many processes there are, how they are connected, and what is fixed."""
        fixed = f"canonical: {self.fixed_shards} shards of each micro-batch, threads in each process: {self._threads}"
        return f"{processes}; {fixed}" if (processes := super().describe()) else fixed


class Shards:
    """What each shard has of some tensors of one type, until they are combined in the order of shards.

    ``like`` are tensors whose sizes and memory order those have; ``here`` shards are this process's.
    """

    def __init__(self, group: Group, here: int, like: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.like = like
        self._group = group
        slice_size = ceil(sum(tensor.numel() for tensor in like) / group.world)
        self._flat = torch.zeros(group.world * slice_size, dtype=dtype, device=like[0].device)
        self._views = views(self._flat, like)
        self._sent = self._flat.new_empty((group.world, here, slice_size))  # slice r goes to rank r

    @torch.no_grad()
    def put(self, place: int, tensors: Sequence[Tensor | None]) -> None:
        """Take what a shard has: the one at ``place`` of this process's. None stands for zeros."""
        for view, tensor in zip(self._views, tensors, strict=True):
            if tensor is None:
                view.zero_()
            else:
                view.copy_(tensor)
        self._sent[:, place] = self._flat.view(self._group.world, -1)

    @torch.no_grad()
    def combined(self, combine: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return what ``combine`` makes of the shards' values [shards, n]; every process does a slice and gives it."""
        rows = self._group.all_to_all(self._sent, "shards").flatten(0, 1)
        return views(self._group.all_gather(combine(rows), "shards"), self.like)


@torch.no_grad()
def added(rows: Tensor) -> Tensor:
    """Return the sum of rows, one after the other."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


@torch.no_grad()
def averaged(rows: Tensor) -> Tensor:
    """Return the mean of rows, bit by bit what they have where all have the same."""
    return torch.where((rows == rows[0]).all(0), rows[0], added(rows) / len(rows))


def part(batch: Batch, place: int, parts: int) -> Batch:
    """Return one of so many equal parts of a batch."""
    size = len(batch) // parts
    rows = slice(place * size, (place + 1) * size)
    return Batch(batch.images[rows], batch.targets[rows], batch.samples[rows])


def by_type(tensors: Sequence[Tensor]) -> Iterator[tuple[torch.dtype, list[Tensor]]]:
    """Yield the types that gradients (or values) of tensors have, each with those of it."""
    found: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        found[gradient_type(tensor) if tensor.requires_grad else tensor.dtype].append(tensor)
    yield from found.items()


def views(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return consecutive parts of ``flat`` as tensors that have the sizes and the memory order of others."""
    found, begin = [], 0
    for tensor in like:
        found.append(flat.as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride(), begin))
        begin += tensor.numel()
    return found


@contextmanager
def threads_fixed(threads: int) -> Iterator[None]:
    """Within ``with``, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
