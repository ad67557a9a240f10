"""``engine summary``: the composed network layer by layer; docs/summary.md explains every column."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine import Session
from engine.budget.foresight import Foresight, Task
from engine.budget.ledger import KINDS, Memory
from engine.budget.measured import measured
from engine.budget.search import described, size
from engine.budget.tasks import task_of

from .roofline import Ceilings, ceilings
from .rows import Row, Table, table_of
from .text import aligned, as_json, count, field, kib, mega, require_writable, write_json
from .timing import Time, kernels_to_time, times_of, total

if TYPE_CHECKING:
    from . import Summary

HEADS = ("layer", "type", "output", "parameters", "frozen", "M multiply-adds", "sees", "stride", "from", "saved KiB")
ROOFLINE = ("FLOP/byte", "bound")


def summary(session: Session) -> None:
    """Print the table of layers, totals, and what a training step takes; write the figures to ``json=`` too."""
    job: Summary = session.options.job  # type: ignore[assignment]
    require_writable(job.json)
    kernels = kernels_to_time(session, job.compare)
    task = task_of(session, job.inputs, job.classes)
    batch = job.batch or session.options.run.batch
    foresight = Foresight(task)
    table = table_of(foresight, batch)
    machine = ceilings(task.device, job.flops, job.bandwidth)
    times: dict[str, dict[str, Time]] = {}
    if job.time:
        print("engine: timing every layer", file=sys.stderr)
        times = times_of(session, task.image, task.outputs, batch, kernels, job.seconds)
    names = [kernel.name for kernel in kernels] if job.time else []
    accumulate = session.options.run.accumulate
    memory = foresight.step(batch, accumulate)
    print(f"{_chosen(session)}, images {' x '.join(map(str, (batch, *task.image)))}, {task.outputs} outputs")
    print(f"\n{layers_text(table, machine, names, times)}\n")
    print("\n".join(totals(table, machine, names, times)))
    print("\n".join(step_text(memory, batch, accumulate)))
    really = _measured(task, batch, accumulate, memory) if job.measure else None
    write_json(job.json, content(table, machine, memory, times) | {"batch": batch, "measured_bytes": really})


def _chosen(session: Session) -> str:
    name = session.choices.get("model", type(session.options.model).__name__)
    return f"model={name}"


def layers_text(
    table: Table, machine: Ceilings, kernels: Sequence[str], times: Mapping[str, Mapping[str, Time]]
) -> str:
    """Return the table of layers; a kernel's column has its milliseconds forward + backward."""
    heads = [*HEADS, *ROOFLINE, *(f"{kernel} ms" for kernel in kernels)]
    rows = []
    for row in table.rows:
        spent = [_time(times.get(row.name, {}).get(kernel)) for kernel in kernels]
        rows.append([*_cells(row), *_position(row, machine, table.images), *spent])
    return aligned(heads, rows, left=2)


def _cells(row: Row) -> list[str]:
    calls = f", {row.calls} times" if row.calls > 1 else ""
    return [
        row.name, row.kind + calls, "x".join(map(str, row.shape)), count(row.trainable), count(row.frozen),
        mega(row.multiply_adds), *(["", "", ""] if row.within else field(row.field)), kib(row.saved),
    ]  # fmt: skip


def _position(row: Row, machine: Ceilings, images: int) -> list[str]:
    work = row.multiply_adds * images
    if row.within:  # what it moves is not known: its layers' input and output are not its own
        return ["", ""]
    return [f"{2 * work / max(row.moved, 1):.1f}" if work else "", machine.bound(work, row.moved)]


def _time(time: Time | None) -> str:
    if time is None or time.forward is None:
        return ""
    return f"{time.forward:.3f}" + (f" + {time.backward:.3f}" if time.backward is not None else "")


def totals(
    table: Table, machine: Ceilings, kernels: Sequence[str], times: Mapping[str, Mapping[str, Time]]
) -> list[str]:
    """Return lines with what all layers have together."""
    last = table.fields.last
    sees = "not known" if last is None else "{} pixels, stride {}, from {}".format(*field(last))
    rates = f"{machine.flops / 1e9:.1f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s"
    lines = [
        f"parameters           {table.trainable + table.frozen:,}: {table.trainable:,} train, {table.frozen:,} frozen",
        f"multiply-adds        {table.multiply_adds / 1e9:.3f} G for an image, forward",
        f"receptive field      {sees}, before global pooling and linear layers",
        f"saved for backward   {table.saved / 2**20:.2f} MiB for an image (of {table.images}), parameters left out",
        f"machine              {rates}: compute-bound from {machine.ridge:.1f} FLOP/byte on",
    ]
    for kernel in kernels:
        lines.append("time, {:14} {:.1f} ms forward, {:.1f} ms backward".format(kernel, *total(times, kernel)))
    return lines + [f"receptive field      {gap}" for gap in table.fields.gaps]


def step_text(memory: Memory, batch: int, accumulate: int) -> list[str]:
    """Return lines with what a training step takes when it takes most."""
    parts = f", {accumulate} micro-batches" if accumulate > 1 else ""
    return [f"memory of a step     {size(memory.total)} at batch {batch}{parts}: {described(memory)}"]


def _measured(task: Task, batch: int, accumulate: int, memory: Memory) -> int:
    print("engine: making a step in a fresh process", file=sys.stderr)
    really = measured(task, batch, accumulate)
    more = memory.total / really - 1
    print(f"measured             {size(really)}: the prediction is {abs(more):.1%} {'above' if more > 0 else 'below'}")
    return really


def content(table: Table, machine: Ceilings, memory: Memory, times: Mapping[str, Mapping[str, Time]]) -> dict[str, Any]:
    """Return what the table shows as JSON's kinds."""
    layers = [
        {
            **{name: value for name, value in vars(row).items() if name not in ("field", "shape")},
            "shape": list(row.shape),
            "field": as_json(row.field),
            "bound": machine.bound(row.multiply_adds * table.images, row.moved),
            "milliseconds": {kernel: vars(time) for kernel, time in times.get(row.name, {}).items()},
        }
        for row in table.rows
    ]
    return {
        "layers": layers,
        "parameters": {"trainable": table.trainable, "frozen": table.frozen},
        "multiply_adds": table.multiply_adds,
        "saved_bytes": table.saved,
        "field": as_json(table.fields.last),
        "gaps": list(table.fields.gaps),
        "machine": vars(machine),
        "memory": {kind: getattr(memory, kind) for kind in KINDS} | {"total": memory.total},
    }
