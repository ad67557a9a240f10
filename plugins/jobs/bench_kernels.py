"""``engine bench kernels``: every kernel on every convolution of the composed model; docs/measuring.md explains it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from engine import Session, UsageError
from engine.composed import composed_layers
from engine.interfaces import DIRECTIONS, ConvSpec
from engine.measuring import gflop

from .contest import Row, Shape, Total, compete, distinct, entrants, speed, totals
from .report import aligned, facts_line, machine, require_writable, write_json

if TYPE_CHECKING:
    from . import BenchKernels

TITLES = {
    "forward": "forward: the output",
    "backward_input": "backward_input: the gradient of the images",
    "backward_weight": "backward_weight: the gradient of the weight",
}
HEADS = ("", "kernel", "ms (quartiles)", "turns", "x native", "GFLOP/s", "workspace MiB", "error below", "waste")


def bench_kernels(session: Session) -> None:
    """Print a table for each direction, the refusals below it, and totals; write them to ``json=`` too."""
    job: BenchKernels = session.options.job  # type: ignore[assignment]
    _check(job)
    kernels = entrants(session, job.compare)
    layers, images = composed_layers(session, job.inputs, job.classes, job.training)
    if not layers:
        raise UsageError("model: it has no convolution (nn.Conv2d) to measure; choose another")
    measured = []
    for number, ((direction, spec), names) in enumerate(todo := list(distinct(layers).items()), 1):
        print(f"engine: measuring {number} of {len(todo)}: {direction} of {shown(spec)}", file=sys.stderr)
        measured.append(
            compete(
                direction,
                spec,
                names,
                kernels,
                seconds=job.seconds,
                prepare=not job.training,
                nchw=not session.options.run.channels_last,
            )
        )
    facts = machine()
    what = "training" if job.training else "inference, weights prepared"
    print(f"{what}, images {' x '.join(map(str, images))}")
    for direction in DIRECTIONS:
        if shapes := [shape for shape in measured if shape.direction == direction]:
            print("\n".join(("", TITLES[direction], table(shapes), *refusals(shapes))))
    for layer in layers:
        if layer.spec is None:
            print(f"\nnot measured: {layer.name}: {layer.remark}")
    if measured:
        print("\n".join(("", "all layers, in the directions that they need", total_table(totals(measured)))))
    print(f"\n{facts_line(facts)}")
    if job.json:
        write_json(job.json, as_json(measured, images, job.training))


def _check(job: BenchKernels) -> None:
    if job.inputs and (len(job.inputs) != 3 or min(job.inputs) < 1):
        given = ",".join(map(str, job.inputs))
        raise UsageError(f"inputs=[{given}]: give channels, height and width of the images, as in inputs=[3,224,224]")
    if job.json:
        require_writable(job.json)


def shown(spec: ConvSpec) -> str:
    """Return a shape in words: images, filters, and what is not usual about it."""
    text = f"{spec.batch}x{spec.channels}x{spec.height}x{spec.width}, {spec.filters} of {_sides(spec.kernel)}"
    usual = {"stride": ((1, 1), spec.stride), "dilation": ((1, 1), spec.dilation), "padding": ((0, 0), spec.padding)}
    text += "".join(f", {name} {_sides(pair)}" for name, (plain, pair) in usual.items() if pair != plain)
    return text + (f", {spec.groups} groups" if spec.groups > 1 else "")


def _sides(pair: tuple[int, int]) -> str:
    return f"{pair[0]}x{pair[1]}"


def table(shapes: Sequence[Shape]) -> str:
    """Return the rows of all kernels, shape by shape, each under a line that names its layers; * marks the fastest."""
    rows = [_cells(shape, row) for shape in shapes for row in shape.rows]
    lines = aligned(HEADS, rows).splitlines()
    told, below = lines[:2], iter(lines[2:])
    for shape in shapes:
        told.append(f"{_some(shape.layers)}: {shown(shape.spec)}, {gflop(shape.spec):.3g} GFLOP")
        told += [next(below) for _ in shape.rows]
    return "\n".join(told)


def _cells(shape: Shape, row: Row) -> list[str]:
    time = row.milliseconds
    return [
        "*" if row is shape.fastest else "", row.kernel, f"{time.median:.3f} ({time.low:.3f} .. {time.high:.3f})",
        str(row.turns), f"{row.over_native.median:.2f}", f"{speed(shape, row):.1f}",
        "" if row.workspace is None else f"{row.workspace / 2**20:.1f}", f"{row.error:.1e}", f"{row.waste:.2f}",
    ]  # fmt: skip


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} ... {names[-1]} ({len(names)})"


def refusals(shapes: Sequence[Shape]) -> Iterator[str]:
    """Yield a line for each kernel and reason: which layers it refuses."""
    together: dict[tuple[str, str], list[str]] = {}
    for shape in shapes:
        for kernel, reason in shape.refusals.items():
            together.setdefault((kernel, reason), []).extend(shape.layers)
    for (kernel, reason), layers in together.items():
        yield f"{kernel} refuses {_some(layers)}: {reason}"


def total_table(sums: Sequence[Total]) -> str:
    """Return the table of totals; where a kernel refuses, native's time counts."""
    heads = ("kernel (native where it refuses)", "ms", "x native", "computes")
    rows = [[t.name, f"{t.milliseconds:.2f}", f"{t.over_native:.2f}", f"{t.taken} of {t.of}"] for t in sums]
    return aligned(heads, rows)


def as_json(measured: Sequence[Shape], images: Sequence[int], training: bool) -> dict[str, Any]:
    """Return what the tables show as JSON values, unrounded."""
    return {
        "images": list(images),
        "training": training,
        "rows": [
            {
                "direction": shape.direction,
                "layers": list(shape.layers),
                "shape": shown(shape.spec),
                "gflop": gflop(shape.spec),
                "kernel": row.kernel,
                "ms": row.milliseconds.median,
                "ms_low": row.milliseconds.low,
                "ms_high": row.milliseconds.high,
                "times_native": row.over_native.median,
                "gflop_per_s": speed(shape, row),
                "workspace_bytes": row.workspace,
                "error": row.error,
                "waste": row.waste,
                "turns": row.turns,
                "fastest": row is shape.fastest,
            }
            for shape in measured
            for row in shape.rows
        ],
        "refusals": [
            {"direction": shape.direction, "layers": list(shape.layers), "kernel": kernel, "reason": reason}
            for shape in measured
            for kernel, reason in shape.refusals.items()
        ],
        "totals": [vars(total) for total in totals(measured)] if measured else [],
    }
