"""Convolution kernels against each other on the shapes of a model: who takes part, what was measured, what is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import Session, UsageError
from engine.convolutions import Layer, nameable, offered
from engine.errors import did_you_mean
from engine.interfaces import DIRECTIONS, ConvKernel, ConvSpec
from engine.measuring import Spread, call, filled, gflop, race, ratios
from engine.ops import NATIVE, register

NCHW = "native, NCHW"  # torch's own on arrays in the other order, which is what a model has without run.channels_last
ROUNDS, TRIALS = 1000, 3  # the time ends a race before; a busy machine may disturb one trial, not three


def entrants(session: Session, compare: Sequence[str]) -> list[ConvKernel]:
    """Return the kernels to compare, native first, known to the op: those that ``kernels=auto`` measures, by default.

    compare: names as ``kernels.layers`` takes them. Raises UsageError for a name that is none.
    """
    registry = session.registry
    installed: dict[str, Any] = {name: registry.entry("kernels", name).options for name in registry.names("kernels")}
    known = nameable(installed)
    for name in compare:
        if name not in known:
            raise UsageError(f"compare: no kernel is called '{name}'{did_you_mean(name, known)}")
    chosen = [known[name] for name in compare] if compare else offered(installed).values()
    kernels = list({kernel.name: kernel for kernel in (NATIVE, *chosen)}.values())
    for kernel in kernels:
        register(kernel)
    return kernels


@dataclass(frozen=True)
class Row:
    """One kernel on one shape, in one direction. over_native: how many times as long as native it took."""

    kernel: str
    milliseconds: Spread
    over_native: Spread
    turns: int
    workspace: int | None  # bytes; torch does not tell its own
    error: float
    waste: float


@dataclass(frozen=True)
class Shape:
    """One direction of a convolution that some layers of the model have in common."""

    direction: str
    spec: ConvSpec
    layers: Sequence[str]
    rows: Sequence[Row]
    refusals: Mapping[str, str] = field(default_factory=dict)  # kernel to reason

    @property
    def fastest(self) -> Row:
        """The kernel with the least median, among those that can be chosen for a single layer."""
        return min((row for row in self.rows if row.kernel != NCHW), key=lambda row: row.milliseconds.median)

    def row(self, kernel: str) -> Row:
        """Return a kernel's row, or native's where it refuses the shape: what the engine would run."""
        return next((row for row in self.rows if row.kernel == kernel), self.rows[0])


def distinct(layers: Sequence[Layer]) -> dict[tuple[str, ConvSpec], list[str]]:
    """Return the names of the layers that share a direction of a shape, direction by direction."""
    found: dict[tuple[str, ConvSpec], list[str]] = {}
    for direction in DIRECTIONS:
        for layer in layers:
            if layer.spec is not None and direction in layer.directions:
                found.setdefault((direction, layer.spec), []).append(layer.name)
    return found


def compete(
    direction: str,
    spec: ConvSpec,
    layers: Sequence[str],
    kernels: Sequence[ConvKernel],
    *,
    seconds: float,
    prepare: bool = False,
    nchw: bool = False,
) -> Shape:
    """Return what each kernel takes for a direction of a shape; the arrays are in NHWC order, as ``kernels=auto`` has.

    prepare: weights are prepared outside the measured time. nchw: torch's own is also timed on arrays in NCHW order.
    """
    refusals = {kernel.name: reason for kernel in kernels if (reason := kernel.refuses(spec, direction))}
    taking = {kernel.name: kernel for kernel in kernels if kernel.name not in refusals}
    arrays = filled(spec)
    calls = {name: call(spec, direction, kernel, prepare, arrays) for name, kernel in taking.items()}
    if nchw:
        taking[NCHW] = NATIVE
        calls[NCHW] = call(spec, direction, NATIVE, prepare, filled(spec, nhwc=False))
    times = race(calls, seconds, ROUNDS, stays=(NATIVE.name, NCHW), trials=TRIALS)
    rows = [
        Row(
            name, Spread.of(times[name]), ratios(times[name], times[NATIVE.name]), len(times[name]),
            None if kernel is NATIVE else kernel.workspace(spec, direction), kernel.error, kernel.waste(spec),
        )
        for name, kernel in taking.items()
    ]  # fmt: skip
    return Shape(direction, spec, layers, rows, refusals)


@dataclass(frozen=True)
class Total:
    """All layers with one kernel, native where that refuses; or with the fastest for each shape and direction."""

    name: str
    milliseconds: float
    over_native: float
    taken: int  # directions of layers that the kernel computes
    of: int


BEST = "the fastest of each"


def totals(shapes: Sequence[Shape]) -> list[Total]:
    """Return the sum of the medians over all layers and directions, for every kernel and for the best mix."""
    names = list(dict.fromkeys(row.kernel for shape in shapes for row in shape.rows))
    rows = {name: [(shape.row(name), len(shape.layers)) for shape in shapes] for name in names}
    rows[BEST] = [(shape.fastest, len(shape.layers)) for shape in shapes]
    sums = {name: sum(row.milliseconds.median * count for row, count in chosen) for name, chosen in rows.items()}
    every = sum(len(shape.layers) for shape in shapes)
    return [
        Total(
            name, sums[name], sums[name] / sums[NATIVE.name],
            sum(count for row, count in chosen if name in (BEST, row.kernel)), every,
        )
        for name, chosen in rows.items()
    ]  # fmt: skip


def speed(shape: Shape, row: Row) -> float:
    """Return a row's GFLOP/s, counted by the definition: what a kernel saves shows as speed."""
    return gflop(shape.spec) / (row.milliseconds.median * 1e-3)
