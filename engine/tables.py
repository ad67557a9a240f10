"""What is printed about kernels at the start of a run: which computes what, why, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from engine.kernels import DIRECTIONS, KernelRow

NATIVE = "native"
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
    table += [[row.layer, *(_cell(row, direction) for direction in used)] for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    after = [row.milliseconds[d].get(_chosen(row, d)) for row in rows for d in row.milliseconds]
    before = [times.get(NATIVE) for row in rows for times in row.milliseconds.values()]
    if None in after or None in before:  # a chooser need not measure everything: then there is no sum
        return lines
    total, native = (sum(t for t in times if t is not None) for times in (after, before))
    return [*lines, f"kernels: {total:.1f} ms for all of these, torch's own {native:.1f} ms"]


def _chosen(row: KernelRow, direction: str) -> str:
    """Return the name of what computes a measured direction."""
    names, measured = row.kernel.split(" / "), list(row.milliseconds)
    return names[measured.index(direction)] if len(names) == len(measured) else row.kernel


def _cell(row: KernelRow, direction: str) -> str:
    """Return a kernel's name and, where they were measured, its milliseconds and torch's own."""
    if direction not in row.milliseconds:
        return "not needed"
    times, name = row.milliseconds[direction], _chosen(row, direction)
    own = f" {times[name]:.2f}" if name in times else ""
    return f"{name}{own} ({times[NATIVE]:.2f})" if NATIVE in times else f"{name}{own}"
