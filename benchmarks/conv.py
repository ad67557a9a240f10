"""The engine's convolution kernels beside PyTorch's own: single layers, whole networks, ``kernels=auto``, host time.

Both sides take turns in one process with the same number of threads and the same setting of the allocator, and
allocate the output of every call. The engine gets NHWC tensors; torch is measured in NHWC (channels_last) and in NCHW,
each with tensors of its own layout. See docs/results/conv.md.
"""

# ruff: noqa: E402 - torch is imported only after its allocator has been told
from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine import huge_pages, kept_memory

huge_pages.turn_on()  # before torch is imported, for both sides
kept_memory.keep()

import torch
from convolutions.host import overhead
from convolutions.kernels import backward, depthwise, fft, implicit, winograd
from convolutions.loops import im2col
from convolutions.measuring import Bench, Pace
from convolutions.whole import auto, network
from harness import Report, arguments

from engine.ops import instruction_set
from engine.registry import Registry

SECTIONS: dict[str, Callable[[Bench], None]] = {
    function.__name__: function
    for function in (winograd, backward, network, fft, implicit, im2col, depthwise, auto, overhead)
}
WITH_GRADIENTS = ("network", "overhead", "auto")  # the others compute gradients by calling for them


def options(parser: ArgumentParser) -> None:
    """Add what this benchmark takes beside the common options."""
    parser.add_argument("--only", type=sections, default=list(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown, for docs/results/conv.md")


def sections(text: str) -> list[str]:
    """Return the names in a list with commas. Raises ArgumentTypeError for one that does not exist."""
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise ArgumentTypeError(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    return names


def main(given: Sequence[str] | None = None) -> None:
    """Measure and report."""
    chosen = arguments(__doc__ or "", given, options)
    torch.set_num_threads(chosen.threads)
    pace = Pace(0.4, 3, 9) if chosen.quick else Pace(3.0, 7, 51)
    if chosen.rounds:
        pace = Pace(0.0, chosen.rounds, chosen.rounds)
    bench = Bench(Report(chosen.json, chosen.markdown), pace, chosen.quick, Registry.load())
    pages = "huge pages" if huge_pages.asked_for() else "small pages"
    allocator = f"{pages}, freed memory {'kept' if kept_memory.kept() else 'given back'}, for both sides"
    print(f"allocator: {allocator}; threads: {chosen.threads}; the engine's kernels: {instruction_set()}")
    for name in chosen.only:
        with torch.set_grad_enabled(name in WITH_GRADIENTS):
            SECTIONS[name](bench)
    bench.report.close(allocator=allocator, kernels=instruction_set())


if __name__ == "__main__":
    main()
