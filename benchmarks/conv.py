"""The engine's convolution kernels beside PyTorch's own: single layers, whole networks, ``kernels=auto``, host time.

Both sides take turns in one process with the same number of threads and the same setting of the allocator, and
allocate the output of every call. The engine gets NHWC tensors; torch is measured in NHWC (channels_last) and in NCHW,
each with tensors of its own layout. See docs/results/conv.md, and docs/results/conv-cuda.md for ``--device cuda``.
"""

# ruff: noqa: E402 - torch is imported only after its allocator has been told
from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine import huge_pages, kept_memory

huge_pages.turn_on()  # before torch is imported, for both sides
kept_memory.keep()

import torch
from convolutions.gpu import device
from convolutions.gpu import kernels as gpu
from convolutions.gpu import whole as gpu_whole
from convolutions.gpu.replay import GRAPHS
from convolutions.host import overhead
from convolutions.kernels import backward, depthwise, fft, implicit, winograd
from convolutions.loops import im2col
from convolutions.measuring import Bench, Pace
from convolutions.whole import auto, network
from harness import Report, arguments, refuse

from engine.ops import instruction_set
from engine.registry import Registry

Section = Callable[[Bench], None]
SECTIONS: dict[str, Section] = {
    function.__name__: function
    for function in (winograd, backward, network, fft, implicit, im2col, depthwise, auto, overhead)
}
GPU_SECTIONS: dict[str, Section] = {
    function.__name__: function
    for function in (
        gpu.winograd, gpu.backward, gpu_whole.network, gpu.fft, gpu.implicit, gpu.depthwise, gpu_whole.auto, overhead,
    )
}  # fmt: skip
WITH_GRADIENTS = ("network", "overhead", "auto")  # the others compute gradients by calling for them


def options(parser: ArgumentParser) -> None:
    """Add what this benchmark takes beside the common options."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both sides compute")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown, for docs/results")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write tables and claims to a file, in Markdown")


def sections(chosen: Namespace) -> dict[str, Section]:
    """Return the sections to measure. Exits with 2 for one that the device does not have."""
    known = GPU_SECTIONS if chosen.device == "cuda" else SECTIONS
    if unknown := [name for name in chosen.only or () if name not in known]:
        where = " with --device cuda" if chosen.device == "cuda" else ""
        refuse("conv.py", f"--only: no such section: {', '.join(unknown)}; there are {', '.join(known)}{where}")
    return {name: known[name] for name in chosen.only or known}


def main(given: Sequence[str] | None = None) -> None:
    """Measure and report."""
    chosen = arguments(__doc__ or "", given, options)
    wanted = sections(chosen)
    if chosen.write and not chosen.write.absolute().parent.is_dir():
        refuse("conv.py", f"--write {chosen.write}: there is no such folder")
    if chosen.device == "cuda" and (reason := device.missing()):
        refuse("conv.py", f"--device cuda: {reason}")
    torch.set_num_threads(chosen.threads)
    if chosen.device == "cuda":
        on_gpu(chosen, wanted, sys.argv[1:] if given is None else given)
    else:
        on_cpu(chosen, wanted)


def on_cpu(chosen: Namespace, wanted: dict[str, Section]) -> None:
    """Measure the sections by wall time."""
    pages = "huge pages" if huge_pages.asked_for() else "small pages"
    allocator = f"{pages}, freed memory {'kept' if kept_memory.kept() else 'given back'}, for both sides"
    first = f"allocator: {allocator}; threads: {chosen.threads}; the engine's kernels: {instruction_set()}"
    print(first)
    report = Report(chosen.json, chosen.markdown, chosen.write, f"# Convolution kernels: tables\n\n{first}")
    measure(Bench(report, pace(chosen, Pace(0.4, 3, 9), Pace(3.0, 7, 51)), chosen.quick, Registry.load()), wanted)
    report.close(allocator=allocator, kernels=instruction_set())


def on_gpu(chosen: Namespace, wanted: dict[str, Section], given: Sequence[str]) -> None:
    """Measure the sections by graph replay, in full float32; rows that say so in TF32."""
    facts = device.facts()
    print(device.line(facts))
    heading = (
        "# Convolution kernels on a GPU: tables\n\n"
        f"Written by `python benchmarks/conv.py {shlex.join(given)}`; [conv-cuda.md](conv-cuda.md) says what is "
        f"measured and how.\n\n{device.line(facts)}"
    )
    report = Report(chosen.json, chosen.markdown, chosen.write, heading)
    # Of single calls: a round replays many, so it is the greatest number of rounds that ends most comparisons.
    rounds = pace(chosen, Pace(0.0, 5, 5), Pace(1.0, 7, 31))
    bench = Bench(report, rounds, chosen.quick, Registry.load(), GRAPHS)
    with device.equal_precision():
        measure(bench, wanted)
    report.close(**facts)


def pace(chosen: Namespace, quick: Pace, full: Pace) -> Pace:
    """Return how many rounds the command line asks for."""
    if chosen.rounds:
        return Pace(0.0, chosen.rounds, chosen.rounds)
    return quick if chosen.quick else full


def measure(bench: Bench, wanted: dict[str, Section]) -> None:
    """Go through the sections."""
    for name, section in wanted.items():
        with torch.set_grad_enabled(name in WITH_GRADIENTS):
            section(bench)


if __name__ == "__main__":
    main()
