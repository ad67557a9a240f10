"""What is printed about kernels at the start of a run: which computes what, why, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from engine.kernels import DIRECTIONS, KernelRow

HEADS = {"forward": "forward", "backward_input": "to images", "backward_weight": "to weight"}


def kernel_table(rows: Sequence[KernelRow]) -> str:
    """Return the table of all layers: like ones share a line, measured ones have a line each with their times."""
    told = [row for row in rows if not row.milliseconds]
    lines = _together(told)
    if measured := [row for row in rows if row.milliseconds]:
        lines += _measured(measured)
    return "\n".join(lines)


def _together(rows: Sequence[KernelRow]) -> list[str]:
    together: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        together.setdefault((row.kernel, row.reason), []).append(row.layer)
    lines = []
    for (kernel, reason), layers in together.items():
        names = ", ".join(layers) if len(layers) <= 3 else f"{layers[0]} ... {layers[-1]} ({len(layers)} layers)"
        lines.append(f"kernels: {names}: {kernel} ({reason})")
    return lines


def _measured(rows: Sequence[KernelRow]) -> list[str]:
    used = [direction for direction in DIRECTIONS if any(direction in row.milliseconds for row in rows)]
    table = [["kernels: layer", *(f"{HEADS[d]}, ms (torch's own)" for d in used)]]
    before = after = 0.0
    for row in rows:
        names = row.kernel.split(" / ")
        names = names if len(names) == len(row.milliseconds) else names * len(row.milliseconds)
        chosen = dict(zip(row.milliseconds, names, strict=True))
        cells = []
        for direction in used:
            times = row.milliseconds.get(direction)
            if times is None:
                cells.append("not needed")
                continue
            name = chosen[direction]
            before, after = before + times["native"], after + times[name]
            cells.append(f"{name} {times[name]:.2f} ({times['native']:.2f})")
        table.append([row.layer, *cells])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return [*lines, f"kernels: {after:.1f} ms for all of these, torch's own {before:.1f} ms"]
