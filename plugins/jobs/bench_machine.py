"""``engine bench machine``: the ceilings that other reports refer to; docs/measuring.md explains every figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine import Session
from engine.composed import device_of
from engine.interfaces import ConvSpec

from .ceilings import Figure, convolution, copies, gemm, memory, op_calls
from .contest import entrants
from .disk import measure_disk, require_room
from .report import aligned, kibibytes, largest_cache, machine, require_writable, write_json

if TYPE_CHECKING:
    from . import BenchMachine


@dataclass(frozen=True)
class Effort:
    """How much is measured. seconds: of one comparison; size: bytes of a tensor in memory; file: MiB on the disk."""

    gemm: tuple[int, ...]
    gpu_gemm: tuple[int, ...]
    shapes: tuple[tuple[int, int, int], ...]  # batch, channels and filters, side of 3x3 convolutions
    seconds: float
    size: int
    file: int
    disk_rounds: int


FULL = Effort(
    gemm=(256, 512, 1024, 2048, 4096), gpu_gemm=(1024, 2048, 4096, 8192), shapes=((8, 64, 56), (8, 256, 14)),
    seconds=1.0, size=256 << 20, file=256, disk_rounds=5,
)  # fmt: skip
QUICK = Effort(
    gemm=(256, 512, 1024), gpu_gemm=(1024, 2048), shapes=((2, 64, 56),),
    seconds=0.1, size=64 << 20, file=32, disk_rounds=1,
)  # fmt: skip
DISK_SECONDS = 10.0  # no further round begins after these


def bench_machine(session: Session) -> None:
    """Print a table for each part of the machine as it is measured; write all figures to ``json=`` too."""
    job: BenchMachine = session.options.job  # type: ignore[assignment]
    effort = QUICK if job.quick else FULL
    effort = replace(effort, file=job.size or effort.file, size=affordable(effort.size))
    folder, device = Path(job.folder), device_of(session)
    require_room(folder, effort.file)
    if job.json:
        require_writable(job.json)
    facts = machine()
    print("\n".join(f"{name:16} {value}" for name, value in facts.items()))
    found: dict[str, Figure] = {}
    for title, figures in sections(session, effort, folder, device, found):
        measured = list(figures)
        found |= {figure.name: figure for figure in measured}
        print(f"\n{title}\n{table(measured)}", flush=True)
    if job.json:
        write_json(job.json, {"figures": as_json(found)})


def affordable(size: int) -> int:
    """Return the bytes of a tensor for measuring memory: beyond the caches, and little of what is free."""
    free = kibibytes(Path("/proc/meminfo"), "MemAvailable") << 10
    wanted = max(size, 4 * largest_cache())
    return min(wanted, free // 16) if free else wanted


def sections(
    session: Session, effort: Effort, folder: Path, device: torch.device, found: Mapping[str, Figure]
) -> Iterator[tuple[str, Iterable[Figure]]]:
    """Yield each part's title and its figures, measured as they are taken; ``found``: those of the parts before."""
    kernels = entrants(session, [])
    implicit = entrants(session, ["implicit"])[-1]
    specs = [
        ConvSpec(batch, width, side, side, width, (3, 3), padding=(1, 1), channels_last=True)
        for batch, width, side in effort.shapes
    ]
    seconds = effort.seconds

    def computing(device: torch.device, sizes: tuple[int, ...]) -> Iterator[Figure]:
        yield from gemm(device, sizes, implicit, seconds)
        for spec in specs:
            yield from convolution(replace(spec, device=device.type), kernels, seconds)

    what = "float32 matrix products of n x n, 3x3 convolutions of batch x channels x height x width"
    yield f"CPU: {what}", computing(torch.device("cpu"), effort.gemm)
    yield memory_title(effort.size), memory(effort.size, 2 * seconds)
    yield f"disk of folder={folder}, a file of {effort.file} MiB", disk(folder, effort)
    yield "host time of one call", op_calls(seconds)
    if device.type == "cuda":
        yield "copies between host and GPU", copies(device, effort.size, 2 * seconds)
        settings = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        tf32 = "TF32 in products: {}, in convolutions: {}".format(*("on" if on else "off" for on in settings))
        yield f"GPU: {what} ({tf32})", (beside_cpu(f, found) for f in computing(device, effort.gpu_gemm))


def memory_title(size: int) -> str:
    """Return the title of the memory's table: how large the tensors are, beside the largest cache if that is known."""
    cache = largest_cache()
    beyond = f", {size / cache:.1f} times the largest cache" if cache else ""
    return f"memory of the CPU: float32 tensors of {size / 2**20:.0f} MiB each{beyond}"


def beside_cpu(figure: Figure, found: Mapping[str, Figure]) -> Figure:
    """Return a GPU's figure with a note of how it compares with the CPU's, if that was measured."""
    same = found.get(figure.name.replace(".cuda.", ".cpu."))
    if same is None:
        return figure
    times = f"{figure.spread.median / same.spread.median:.1f} x the CPU's"
    return replace(figure, note=f"{figure.note}, {times}" if figure.note else times)


def disk(folder: Path, effort: Effort) -> Iterator[Figure]:
    """Yield MB/s of writing and reading one file."""
    rates, how = measure_disk(folder, effort.file, effort.disk_rounds, DISK_SECONDS)
    for name, spread in rates.items():
        yield Figure(f"disk.{name}", spread, "MB/s", how)


def table(figures: Iterable[Figure]) -> str:
    """Return the figures with their quartiles, units and notes."""
    rows = []
    for figure in figures:
        low, median, high = (f"{value:.4g}" for value in (figure.spread.low, figure.spread.median, figure.spread.high))
        rows.append([figure.name, f"{median} ({low} .. {high})", figure.unit, figure.note])
    return aligned(("figure", "median (quartiles)", "unit", ""), rows)


def as_json(found: Mapping[str, Figure]) -> dict[str, dict[str, float | str]]:
    """Return every figure by its name: value (the median), low, high (quartiles), unit and note."""
    return {
        name: {
            "value": figure.spread.median, "low": figure.spread.low, "high": figure.spread.high,
            "unit": figure.unit, "note": figure.note,
        }
        for name, figure in found.items()
    }  # fmt: skip
