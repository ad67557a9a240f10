"""How activations are laid out over the processes of a group, and the collectives that lead from one to another.

Of G processes each has B rows (samples) of its own. In layout *batch* a process holds its rows, all columns; in layout
*feature* the rows of all, by rank, of its columns. Every change of layout is a linear map, whose transpose is what
gradients need; the transposes are changes of layout too:

    gather_batch      <->  reduce_scatter_batch       own rows -> everybody's;  partial sums of all -> own rows
    batch_to_feature  <->  feature_to_batch           all-to-all, 1/G of the bytes
    gather_feature    <->  reduce_scatter_feature     own columns -> all;       partial sums of all -> own columns

Widths that G does not divide are shared as evenly as can be, and padded on the wire alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.distributed.group import Group, Pending, size_of

BATCH, FEATURE = "batch", "feature"


@dataclass(frozen=True, eq=False)
class Columns:
    """How the processes of a group share ``size`` columns: process r has those of ``bounds[r]`` to ``bounds[r + 1]``.

    Each has at least one, and at most ``width``.
    """

    group: Group
    size: int

    @property
    def bounds(self) -> list[int]:
        """Where each process's columns begin, and the last one's end."""
        return [rank * self.size // self.group.world for rank in range(self.group.world + 1)]

    @property
    def width(self) -> int:
        """The columns of a process, at most."""
        return ceil(self.size / self.group.world)

    @property
    def own(self) -> slice:
        """Those of this process."""
        return slice(*self.bounds[self.group.rank : self.group.rank + 2])

    def spread(self, values: Tensor) -> Tensor:
        """Return all columns [n, size] as those of every process, [world, n, width], padded with zeros."""
        rows, world = len(values), self.group.world
        if self.size == world * self.width:
            return values.view(rows, world, self.width).transpose(0, 1).contiguous()
        out = values.new_zeros(world, rows, self.width)
        for part, begin, end in zip(out, self.bounds, self.bounds[1:], strict=False):
            part[:, : end - begin] = values[:, begin:end]
        return out

    def join(self, parts: Tensor) -> Tensor:
        """Return the columns of every process [world, n, width] as all columns [n, size]."""
        world, rows, width = parts.shape
        if self.size == world * width:
            return parts.transpose(0, 1).reshape(rows, self.size)
        ends = zip(parts, self.bounds, self.bounds[1:], strict=False)
        return torch.cat([part[:, : end - begin] for part, begin, end in ends], 1)

    def padded(self, values: Tensor) -> Tensor:
        """Return this process's columns [n, own] with zeros up to ``width``."""
        return torch.nn.functional.pad(values, (0, self.width - values.shape[1]))

    def trimmed(self, values: Tensor) -> Tensor:
        """Return this process's columns [n, own] of [n, width]."""
        own = self.own.stop - self.own.start
        return values if own == self.width else values[:, :own].contiguous()


class Move(torch.autograd.Function):
    """A linear map over processes: ``there`` of values, ``back`` (its transpose) of gradients."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return ``there(values)``."""
        ctx.back = back
        made = there(values)
        return made.clone() if made._is_view() else made  # what follows may work in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return ``back(gradient)``."""
        return ctx.back(gradient.contiguous()), None, None


def moved(
    columns: Columns,
    values: Tensor,
    there: Callable[[Columns, Tensor], Tensor],
    back: Callable[[Columns, Tensor], Tensor],
) -> Tensor:
    """Return ``there(columns, values)``, differentiable; where a process is alone, what it was given."""
    if columns.group.world == 1:
        return values
    return Move.apply(values, lambda x: there(columns, x), lambda g: back(columns, g))


def gather_batch(columns: Columns, rows: Tensor) -> Tensor:
    """Return everybody's rows [world * b, n] of own ones [b, n]."""
    return columns.group.all_gather(rows, "activations")


def reduce_scatter_batch(columns: Columns, partial: Tensor) -> Tensor:
    """Return own rows [b, n] of the sum of everybody's [world * b, n]."""
    return columns.group.reduce_scatter(partial, "activations")


def batch_to_feature(columns: Columns, rows: Tensor) -> Tensor:
    """Return own columns of everybody's rows [world * b, own] of own rows [b, n]."""
    spread = columns.spread(rows.contiguous()).flatten(0, 1)
    return columns.trimmed(columns.group.all_to_all(spread, "activations"))


def feature_to_batch(columns: Columns, features: Tensor) -> Tensor:
    """Return own rows [b, n] of own columns of everybody's rows [world * b, own]."""
    parts = columns.group.all_to_all(columns.padded(features), "activations")
    return columns.join(parts.view(columns.group.world, -1, columns.width))


def gather_feature(columns: Columns, features: Tensor) -> Tensor:
    """Return all columns [m, n] of own ones [m, own]; every process has the same rows."""
    parts = columns.group.all_gather(columns.padded(features), "activations")
    return columns.join(parts.view(columns.group.world, -1, columns.width))


def reduce_scatter_feature(columns: Columns, partial: Tensor) -> Tensor:
    """Return own columns [m, own] of the sum of everybody's [m, n]."""
    spread = columns.spread(partial.contiguous()).flatten(0, 1)
    return columns.trimmed(columns.group.reduce_scatter(spread, "activations"))


def to_owner(columns: Columns, features: Tensor, owner: int) -> Tensor:
    """Return in process ``owner`` all columns [m, n] of everybody's own [m, own], and [0, n] in the others."""
    world, rank, rows = columns.group.world, columns.group.rank, len(features)
    send = [rows if other == owner else 0 for other in range(world)]
    receive = [rows if rank == owner else 0] * world
    parts = begin_exchange(columns.group, columns.padded(features), send, receive).wait()
    return columns.join(parts.view(world, -1, columns.width))


def from_owner(columns: Columns, rows: Tensor, owner: int, count: int) -> Tensor:
    """Return own columns [count, own] of what process ``owner`` has, [count, n]; the others give [0, n]."""
    world, rank = columns.group.world, columns.group.rank
    send = [count if rank == owner else 0] * world
    receive = [count if other == owner else 0 for other in range(world)]
    return columns.trimmed(begin_exchange(columns.group, columns.spread(rows).flatten(0, 1), send, receive).wait())


def begin_exchange(group: Group, values: Tensor, send: Sequence[int], receive: Sequence[int]) -> Pending:
    """Begin to give the next ``send[r]`` rows of ``values`` to each rank r, and to collect ``receive[r]`` from it."""
    values = values.contiguous()
    out = values.new_empty((sum(receive), *values.shape[1:]))
    rows = sum(send) - send[group.rank]
    return group._run(
        "all_to_all activations", rows * size_of(values[:1]) if rows else 0, out,
        lambda: dist.all_to_all_single(
            out, values, list(receive), list(send), group=group.process_group, async_op=True
        ),
    )  # fmt: skip
