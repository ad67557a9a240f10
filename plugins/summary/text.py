"""Aligned tables, and numbers in them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import UsageError
from engine.folder import write_whole

from .fields import Field, Pair


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table whose first ``left`` columns begin together and whose others end together."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]

    def shown(line: Sequence[str]) -> str:
        cells = zip(line, widths, range(len(heads)), strict=True)
        return "  ".join(c.ljust(w) if place < left else c.rjust(w) for c, w, place in cells).rstrip()

    return "\n".join([shown(heads), "  ".join("-" * width for width in widths), *map(shown, rows)])


def count(value: float) -> str:
    """Return a whole number with commas, nothing for 0."""
    return f"{value:,.0f}" if value else ""


def mega(value: float) -> str:
    """Return millions, nothing for 0."""
    return f"{value / 1e6:,.3f}" if value else ""


def kib(value: float) -> str:
    """Return KiB, nothing for 0."""
    return f"{value / 2**10:,.1f}" if value else ""


def sides(pair: Pair) -> str:
    """Return one number, or height x width where they differ."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def field(seen: Field | None) -> list[str]:
    """Return a field's size, stride and start; question marks for one that is not known."""
    return ["?", "?", "?"] if seen is None else [sides(seen.size), sides(seen.stride), sides(seen.start)]


def as_json(seen: Field | None) -> dict[str, list[int]] | None:
    """Return a field as JSON's kinds, heights first."""
    return None if seen is None else {name: list(pair) for name, pair in vars(seen).items()}


def require_writable(path: str) -> None:
    """Raise UsageError if a file cannot be put there."""
    folder = Path(path).absolute().parent
    if path and (Path(path).is_dir() or not os.access(folder, os.W_OK)):
        raise UsageError(f"json={path} cannot be written: name a file in an existing folder")


def write_json(path: str, content: dict[str, Any]) -> None:
    """Write figures to ``path``, if there is one. Raises UsageError if it cannot be."""
    try:
        if path:
            write_whole(Path(path), json.dumps({"format": 1, **content}, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"json={path} cannot be written: {error.strerror}") from error
