"""What the measuring jobs share: aligned tables, the facts that figures depend on, and the file for other tools."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine import UsageError, __version__, huge_pages, kept_memory
from engine.folder import write_whole
from engine.ops import instruction_set

FORMAT = 1


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, every column as wide as its longest entry; columns of figures are aligned to the right."""
    widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
    figures = [all(_is_figure(row[place]) for row in rows) for place in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, figures, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip()

    return "\n".join(line(row) for row in (columns, ["-" * width for width in widths], *rows))


def _is_figure(cell: str) -> bool:
    return re.fullmatch(r"|[\d.,]+(e-?\d+)?", cell.partition(" (")[0]) is not None


def machine() -> dict[str, str]:
    """Return what every figure depends on, in words; nothing that names the machine."""
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "instruction set": f"{instruction_set()} (torch: {torch.backends.cpu.get_cpu_capability()})",
        "memory": f"{kibibytes(Path('/proc/meminfo'), 'MemTotal') / 2**20:.1f} GiB",
        "largest cache": f"{largest_cache() / 2**20:.0f} MiB",
        "huge pages": page_size(),
        "freed memory": "kept" if kept_memory.kept() else "as the allocator likes",
        "torch": str(torch.__version__),
        "engine": __version__,
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def facts_line(facts: dict[str, str]) -> str:
    """Return the facts as a line."""
    return "; ".join(f"{name} {value}" for name, value in facts.items())


def processor() -> str:
    """Return the processor's own name, or its kind where the system does not tell."""
    told = Path("/proc/cpuinfo")
    for line in told.read_text().splitlines() if told.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def page_size() -> str:
    """Return in words which pages torch's large tensors are made of."""
    if huge_pages.asked_for():
        return "asked for" if huge_pages.available() else "asked for, but this system gives none"
    return "not asked for" if huge_pages.available() else "not on this system"


def kibibytes(table: Path, name: str) -> int:
    """Return an entry of /proc/meminfo, in KiB; 0 where there is none."""
    for line in table.read_text().splitlines() if table.exists() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def largest_cache() -> int:
    """Return the bytes of the largest cache of the first core; 0 where the system does not tell."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(size.read_text().strip().removesuffix("K")) << 10 for size in sizes), default=0)


def require_writable(path: str) -> None:
    """Raise UsageError if a file cannot be put there: better before measuring than after."""
    folder = Path(path).absolute().parent
    if path and (Path(path).is_dir() or not os.access(folder, os.W_OK)):
        reason = "it is a folder" if Path(path).is_dir() else f"{folder} is no folder that can be written to"
        raise UsageError(f"json={path}: {reason}; name a file in an existing folder")


def write_json(path: str, content: dict[str, Any]) -> None:
    """Write the figures, the machine's facts and the format's number to ``path``. Raises UsageError if it cannot."""
    try:
        write_whole(Path(path), json.dumps({"format": FORMAT, "machine": machine(), **content}, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"json={path} cannot be written: {error.strerror}") from error
