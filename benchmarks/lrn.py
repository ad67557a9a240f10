"""Local response normalization by the engine's kernel and by torch's operations: time, and memory of AlexNet.

Times are of a forward and a backward pass at the shapes that AlexNet normalizes. Memory is what AlexNet keeps for the
backward pass at batch 256, counted on the meta device, and the most that a process needs for one such step (not with
``--quick``). See docs/results/lrn.md.
"""

# ruff: noqa: E402 - torch is imported only after its allocator has been told
from __future__ import annotations

import re
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine import huge_pages, kept_memory

MEASURED_ALONE = "--peak-of" in sys.argv  # a process that keeps nothing, as what it needs at most is asked
if not MEASURED_ALONE:
    huge_pages.turn_on()  # before torch is imported, for all sides
    kept_memory.keep()

import torch
from harness import Report, Side, arguments, interleave
from torch import Tensor, nn

from engine.normalization import LocalResponseNorm
from engine.ops import instruction_set
from engine.plugins.models.alexnet import AlexNet

SHAPES = ((32, 96, 55, 55), (32, 256, 27, 27))
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
KERNEL, TORCH = "kernel", "torch"
BATCH, IMAGE = 256, (3, 227, 227)
AT_LEAST = 2.0  # times as fast as torch's operations
SAVED = 1.5  # GiB less than with torch's operations
GIB = 2**30


def options(parser: ArgumentParser) -> None:
    """Add what this benchmark takes beside the common options."""
    parser.add_argument("--peak-of", choices=(KERNEL, TORCH), help="only take one step of AlexNet, and print the most "
                        "memory that this process had, in GiB")  # fmt: skip


def normalization(side: str) -> nn.Module:
    """Return the layer with Krizhevsky's constants, as Caffe has them."""
    return LocalResponseNorm(5, 1e-4, 0.75, 1.0, fused=side == KERNEL)


def step(layer: nn.Module, images: Tensor, gradient: Tensor) -> Side:
    """Return a forward and backward pass through the layer."""

    def run() -> None:
        torch.autograd.grad(layer(images), images, gradient)

    return run


def times(report: Report, rounds: int) -> None:
    """Compare both sides at AlexNet's shapes."""
    rows = []
    for shape in SHAPES:
        for layout, memory in LAYOUTS.items():
            images, gradient = (torch.randn(shape).contiguous(memory_format=memory) for _ in range(2))
            images.relu_().requires_grad_()
            taken = interleave({side: step(normalization(side), images, gradient) for side in (KERNEL, TORCH)}, rounds)
            ratio = taken.ratio(TORCH, KERNEL)
            name = f"{'x'.join(map(str, shape))}, {layout}"
            rows.append([name, *(taken.spread(side).text(1e3, 1) for side in (KERNEL, TORCH)), ratio.text(1, 1)])
            report.claim(f"times as fast, {name}", ratio.median, AT_LEAST, "x", at_least=True)
    columns = ["images", "kernel, ms", "torch's operations, ms", "torch's over the kernel's"]
    report.table("forward and backward", columns, rows)


def kept(norm: Callable[[], nn.Module] | None) -> float:
    """Return the GiB that AlexNet keeps for the backward pass at batch 256 beside its weights, every tensor once."""
    with torch.device("meta"):
        model, images = AlexNet(IMAGE, 1000, norm=norm), torch.empty(BATCH, *IMAGE)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    bytes_of: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            bytes_of[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scores = model(images)
    assert scores.requires_grad
    return sum(bytes_of.values()) / GIB


def peak_of(side: str) -> float:
    """Return the GiB that this process needs at most for one step of AlexNet at batch 256, beyond torch itself."""
    before = resident("VmRSS")
    model, images = AlexNet(IMAGE, 1000, norm=lambda: normalization(side)), torch.randn(BATCH, *IMAGE)
    nn.functional.cross_entropy(model(images), torch.zeros(BATCH, dtype=torch.int64)).backward()
    return resident("VmHWM") - before


def resident(what: str) -> float:
    """Return the GiB that this process has in memory (VmRSS), or had at most (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024 / GIB


def memory(report: Report, quick: bool, threads: int) -> None:
    """Compare what AlexNet needs with both sides."""
    kept_by = {side: kept(lambda side=side: normalization(side)) for side in (KERNEL, TORCH)}
    rows = [["kept for the backward pass", *(f"{kept_by[side]:.2f}" for side in (KERNEL, TORCH)), f"{kept(None):.2f}"]]
    report.claim("AlexNet at 256: kept less", kept_by[TORCH] - kept_by[KERNEL], SAVED, "GiB", at_least=True)
    if not quick:
        command = [sys.executable, __file__, f"--threads={threads}", "--peak-of"]
        peaks = {side: float(subprocess.check_output([*command, side], text=True)) for side in (KERNEL, TORCH)}
        rows.append(["most memory of a process", *(f"{peaks[side]:.2f}" for side in (KERNEL, TORCH)), ""])
        report.claim("AlexNet at 256: at most less", peaks[TORCH] - peaks[KERNEL], SAVED, "GiB", at_least=True)
    columns = ["AlexNet at batch 256, GiB", "kernel", "torch's operations", "no normalization"]
    report.table("memory", columns, rows)


def main(given: Sequence[str] | None = None) -> None:
    """Measure and report."""
    chosen = arguments(__doc__ or "", given, options)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    if chosen.peak_of:
        print(peak_of(chosen.peak_of))
        return
    report = Report(chosen.json)
    times(report, chosen.rounds or (3 if chosen.quick else 15))
    memory(report, chosen.quick, chosen.threads)
    report.close(kernels=instruction_set())


if __name__ == "__main__":
    main()
