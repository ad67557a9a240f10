"""Linear layers of which every process of a group has a part, and the dropout between them.

An ``nn.Linear`` becomes one of them in place: module, parameters, hooks and names stay, class and values change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine import uniform

from .layouts import (
    BATCH,
    Columns,
    Move,
    batch_to_feature,
    feature_to_batch,
    from_owner,
    gather_batch,
    gather_feature,
    moved,
    reduce_scatter_batch,
    reduce_scatter_feature,
    to_owner,
)

if TYPE_CHECKING:
    from engine import Key

COLUMN, ROW = "column", "row"


@dataclass(eq=False)
class Pass:
    """What the layers of a model know of the pass that runs through them.

    own, everybody: int64 global sample numbers of the rows in either layout, on the CPU. gathered: whether the first
    layer is given everybody's rows. owner: which process of the group all rows are of, if they are of one.
    """

    own: Tensor | None = None
    everybody: Tensor | None = None
    gathered: bool = False
    owner: int | None = None


@dataclass(eq=False)
class Leading:
    """The dimensions before the last, of what the first of some layers in a row was given; the last returns such."""

    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """How a layer is split. column: each process has some of the outputs; row: it has some of the inputs.

    before, after: the layouts of what it reads and returns. first: whether it is the one that is given gathered rows
    in schemes b and c. leading: the same object for the layers between two batch layouts.
    """

    kind: str
    before: str
    after: str
    inputs: Columns
    outputs: Columns
    now: Pass
    leading: Leading
    first: bool = False

    @property
    def columns(self) -> Columns:
        """What of the weight is split."""
        return self.outputs if self.kind == COLUMN else self.inputs

    @property
    def own_bias(self) -> bool:
        """Whether a process has a part of the bias; else all have the same."""
        return self.kind == COLUMN or self.after != BATCH

    def enter(self, values: Tensor) -> Tensor:
        """Return what the layer multiplies, of what it is given."""
        if self.before != BATCH:
            return moved(self.inputs, values, gather_feature, reduce_scatter_feature) if self.kind == COLUMN else values
        if self.first and self.now.gathered:
            self.leading.sizes = None
            return values
        self.leading.sizes = tuple(values.shape[:-1])
        values = values.reshape(-1, values.shape[-1])
        if self.kind == COLUMN:
            return moved(self.inputs, values, gather_batch, reduce_scatter_batch)
        return moved(self.inputs, values, batch_to_feature, feature_to_batch)

    def leave(self, values: Tensor) -> Tensor:
        """Return what the layer returns, of its product: own columns, or partial sums of all."""
        if self.after != BATCH:
            return values if self.kind == COLUMN else moved(
                self.outputs, values, reduce_scatter_feature, gather_feature
            )  # fmt: skip
        owner, columns = self.now.owner, self.outputs
        if owner is not None and columns.group.world > 1:
            count = len(values)
            values = Move.apply(
                values, lambda x: to_owner(columns, x, owner), lambda g: from_owner(columns, g, owner, count)
            )
        elif self.kind == COLUMN:
            values = moved(columns, values, feature_to_batch, batch_to_feature)
        else:
            values = moved(columns, values, reduce_scatter_batch, gather_batch)
        return values if self.leading.sizes is None else values.view(*self.leading.sizes, -1)


class SplitLinear(nn.Linear):
    """A linear layer of which this process has a part of the weights; rows are samples (or places in them).

    ``in_features`` and ``out_features`` are those of the whole layer.
    """

    split: Split

    @torch._disable_dynamo  # a compiler leaves alone what waits for other processes
    def forward(self, input: Tensor) -> Tensor:
        """Return what the whole layer returns, in the layout that it is to return."""
        split = self.split
        values = split.enter(input.to(computed_in(input)))
        if split.kind == COLUMN:
            return split.leave(functional.linear(values, self.weight, self.bias))
        values = split.leave(functional.linear(values, self.weight))
        return values if self.bias is None else values + self.bias.to(values.dtype)

    def extra_repr(self) -> str:
        """Return the layer's settings."""
        return f"{super().extra_repr()}, {self.split.kind} {self.split.columns.group.rank}"


def computed_in(values: Tensor) -> torch.dtype:
    """Return the type that a linear layer computes in here, and values are best sent in."""
    kind = values.device.type
    narrow = torch.is_autocast_enabled(kind) and values.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if narrow else values.dtype


class KeyedDropout(nn.Dropout):
    """Dropout whose masks depend on (key, sample, feature) alone: the same for any number of processes.

    layout: of what it is given; columns: all features and those of this process.
    """

    key: Key
    now: Pass
    layout: str
    columns: Columns

    @torch._disable_dynamo  # or calls into native code
    def forward(self, input: Tensor) -> Tensor:
        """Return the input, in training with elements dropped and the others divided by 1 - p."""
        if not self.training or self.p == 0:
            return input
        samples = self.now.own if self.layout == BATCH else self.now.everybody
        assert samples is not None, "the strategy tells the samples of every pass in training"
        flat = input.flatten(1)
        own = slice(0, flat.shape[1]) if self.layout == BATCH else self.columns.own
        size = flat.shape[1] if self.layout == BATCH else self.columns.size
        kept = draws(self.key, rows_of(samples, len(flat)), size, own) >= self.p
        scale = 1 / (1 - self.p) if self.p < 1 else 0.0
        return (flat * (kept.to(flat.device, flat.dtype) * scale)).view(input.shape)


def rows_of(samples: Tensor, rows: int) -> Tensor:
    """Return a number for each of so many rows, of which every sample has as many as the others."""
    each = rows // max(1, len(samples))
    assert each * len(samples) == rows, f"{rows} rows of {len(samples)} samples"
    return samples if each == 1 else (samples[:, None] * each + torch.arange(each)).flatten()


def draws(key: Key, rows: Tensor, size: int, own: slice) -> Tensor:
    """Return uniform draws [n, own] for some columns of rows that have ``size``; no others are computed.

    They come in fours, as Philox makes them.
    """
    first, last, all_of = own.start // 4, ceil(own.stop / 4), ceil(size / 4)
    numbers = (rows[:, None] * all_of + torch.arange(first, last)).flatten()
    drawn = uniform(key, numbers, 4).view(len(rows), 4 * (last - first))
    return drawn[:, own.start - 4 * first : own.stop - 4 * first]


def split_linear(layer: nn.Linear, split: Split) -> None:
    """Turn a whole layer into this process's part of it, in place."""
    own = split.columns.own
    layer.weight.data = (layer.weight[own] if split.kind == COLUMN else layer.weight[:, own]).detach().clone()
    if layer.bias is not None and split.own_bias:
        layer.bias.data = layer.bias[split.outputs.own].detach().clone()
    layer.__class__ = SplitLinear
    layer.split = split  # type: ignore[assignment]


@dataclass(frozen=True)
class Part:
    """Where a process's part of a parameter begins, in a whole of so large a shape."""

    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def parts_of(name: str, layer: SplitLinear) -> Mapping[str, Part]:
    """Return what this process has of a layer's parameters, by their names; those that all have alike are left out."""
    split, weight = layer.split, tuple(layer.weight.shape)
    begin, column = split.columns.own.start, split.kind == COLUMN
    shape = (layer.out_features, layer.in_features)
    found = {f"{name}.weight": Part(shape, (begin, 0) if column else (0, begin), weight)}
    if layer.bias is not None and split.own_bias:
        own = split.outputs.own
        found[f"{name}.bias"] = Part((layer.out_features,), (own.start,), (own.stop - own.start,))
    return found


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within ``with``, split layers are whole ones and dropout draws as torch does; then each is as it was again."""
    split = [module for module in model.modules() if isinstance(module, SplitLinear)]
    dropouts = [module for module in model.modules() if isinstance(module, KeyedDropout)]
    own = [{name: parameter.data for name, parameter in layer.named_parameters()} for layer in split]
    try:
        for layer in split:
            _gather(layer)
            layer.__class__ = nn.Linear  # type: ignore[assignment]
        for dropout in dropouts:
            dropout.__class__ = nn.Dropout  # type: ignore[assignment]
        yield
    finally:
        for layer, values in zip(split, own, strict=True):
            layer.__class__ = SplitLinear
            for name, parameter in layer.named_parameters():
                parameter.data = values[name]
        for dropout in dropouts:
            dropout.__class__ = KeyedDropout


def _gather(layer: SplitLinear) -> None:
    split = layer.split
    weight = layer.weight.data
    if split.kind == COLUMN:
        layer.weight.data = gather_feature(split.columns, weight.T).T.contiguous()
    else:
        layer.weight.data = gather_feature(split.columns, weight)
    if layer.bias is not None and split.own_bias:
        layer.bias.data = gather_feature(split.outputs, layer.bias.data[None])[0]
