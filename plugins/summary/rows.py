"""A network layer by layer, seen without computing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from engine.budget.foresight import Foresight
from engine.budget.trace import Call, Trace, trace

from .fields import Field, Fields, fields_of

BETWEEN = " (own code)"  # behind the name of a module whose code computes between its layers


@dataclass(frozen=True)
class Row:
    """One layer. Numbers are of one image, but ``moved``.

    shape: of its output, without the images' axis. trainable, frozen: parameters. multiply_adds: of convolutions and
    linear layers, forward. saved: bytes that the backward pass needs and no layer before it has saved. moved: bytes of
    input, output and parameters for a whole micro-batch, each once. calls: how many times it computes. within: whether
    there are layers inside of it, which have rows of their own.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    trainable: int
    frozen: int
    multiply_adds: int
    saved: float
    moved: int
    field: Field | None
    calls: int = 1
    within: bool = False


@dataclass(frozen=True)
class Table:
    """All layers in the order in which they compute. images: of the micro-batch that was looked at."""

    rows: Sequence[Row]
    fields: Fields
    images: int

    @property
    def trainable(self) -> int:
        """Parameters that train."""
        return sum(row.trainable for row in self.rows)

    @property
    def frozen(self) -> int:
        """Parameters that do not."""
        return sum(row.frozen for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Of one image, forward."""
        return sum(row.multiply_adds for row in self.rows)

    @property
    def saved(self) -> float:
        """Bytes saved for the backward pass, for one image."""
        return sum(row.saved for row in self.rows)


def table_of(foresight: Foresight, batch: int) -> Table:
    """Return the layers of the foreseen model, for a micro-batch of so many images."""
    with foresight.imagined():
        with foresight.precision.forward():
            seen = trace(foresight.model, foresight.images(batch))
        fields = fields_of(foresight.model, foresight.images(batch))
    return Table(rows_of(seen, fields, batch), fields, batch)


def rows_of(seen: Trace, fields: Fields, batch: int) -> list[Row]:
    """Return a row for every layer, and for every module whose own code saves something or has parameters."""
    calls: dict[str, list[Call]] = {}
    for call in seen.root.all():
        calls.setdefault(call.name, []).append(call)
    counted: set[Tensor] = set()
    rows = []
    for name, same in calls.items():
        saved = sum(seen.saved_by(call) for call in same)
        module, inner = same[0].module, bool(same[0].calls)
        own = [p for p in module.parameters(recurse=False) if p not in counted]
        counted.update(own)
        if not inner or own or saved:
            rows.append(_row(name + (BETWEEN if inner else ""), same, own, saved, batch, fields))
    return rows


def _row(name: str, calls: Sequence[Call], own: Sequence[nn.Parameter], saved: int, batch: int, fields: Fields) -> Row:
    first = calls[0]
    tensors = [t for call in calls for t in (call.given, call.made) if t is not None]
    return Row(
        name=name.strip(),
        kind=type(first.module).__name__,
        shape=first.shape[1:],
        trainable=sum(p.numel() for p in own if p.requires_grad),
        frozen=sum(p.numel() for p in own if not p.requires_grad),
        multiply_adds=0 if first.calls else sum(call.multiply_adds for call in calls) // batch,
        saved=saved / batch,
        moved=sum(prod(t.shape) * t.element_size() for t in (*tensors, *own)),
        field=fields.by_module.get(first.name),
        calls=len(calls),
        within=bool(first.calls),
    )
