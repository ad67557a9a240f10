"""Draws docs/images/conv-*.png: time and error of every kernel, against filter size and against channels.

``python benchmarks/plots/conv.py`` measures (some minutes) and draws; it needs matplotlib (requirements-bench.txt).
``--quick`` tries it out, with few points: give it a ``--folder`` of its own.
Times are medians of sides that take turns, as in ``benchmarks/conv.py``. The error is the relative L2 distance from
torch's convolution in float64, of inputs and weights of normal noise.
"""

# ruff: noqa: E402 - torch is imported only after its allocator has been told
from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import huge_pages, kept_memory

huge_pages.turn_on()  # before torch is imported, for all sides
kept_memory.keep()

import torch
from convolutions.layers import Conv
from convolutions.measuring import NHWC, Bench, Operands, Pace, compare, side, torch_call
from harness import Report, Side, arguments

from engine.measuring import call
from engine.registry import Registry

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
BATCH = 4
KERNELS = ("implicit", "im2col", "winograd2", "winograd4", "winograd6", "fft")
LOOKS = {  # colours that the colour-blind can tell apart (Okabe and Ito 2008), and marks
    NHWC: ("black", "s"),
    "implicit": ("#0072B2", "o"),
    "im2col": ("#56B4E9", "x"),
    "winograd2": ("#F0E442", "v"),
    "winograd4": ("#E69F00", "^"),
    "winograd6": ("#D55E00", "D"),
    "fft": ("#009E73", "o"),
}
SIZES = tuple(Conv("", 64, 64, 56, kernel) for kernel in (3, 5, 7, 9, 11, 15, 21, 31))
CHANNELS = tuple(Conv("", channels, channels, 28) for channels in (16, 32, 64, 128, 256, 512))
Curves = dict[str, dict[int, float]]
"""By kernel: from filter size or channels to milliseconds or error."""


def measured(bench: Bench, layers: Sequence[Conv], of: Callable[[Conv], int]) -> tuple[Curves, Curves]:
    """Return milliseconds and relative errors of torch (channels_last) and of all kernels that take a layer."""
    milliseconds: Curves = {}
    errors: Curves = {}
    for conv in layers:
        spec, one = conv.spec(BATCH), conv.spec(1)
        kernels = [k for k in bench.kernels(KERNELS) if not k.refuses(spec, "forward")]
        operands = Operands.of(spec, NHWC)
        sides: dict[str, Side] = {NHWC: side(torch_call(spec, "forward", operands))}
        sides |= {k.name: side(call(spec, "forward", k, arrays=operands)) for k in kernels}
        times = compare(sides, bench.pace)
        for name in sides:
            milliseconds.setdefault(name, {})[of(conv)] = 1e3 * times.spread(name).median
        few = Operands.of(one, NHWC)
        exact = torch_call(one, "forward", Operands(*(t.double() for t in few)))()
        results = {NHWC: torch_call(one, "forward", few)()} | {
            k.name: call(one, "forward", k, arrays=few)() for k in kernels
        }
        for name, result in results.items():
            errors.setdefault(name, {})[of(conv)] = ((result - exact).norm() / exact.norm()).item()
    return milliseconds, errors


def draw(path: Path, title: str, label: str, milliseconds: Curves, errors: Curves) -> None:
    """Write a picture of two panels, times and errors, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for panel, curves, unit in zip(panels, (milliseconds, errors), ("ms", "relative L2 error"), strict=True):
        for name, curve in curves.items():
            colour, mark = LOOKS[name]
            panel.loglog(list(curve), list(curve.values()), color=colour, marker=mark, markersize=5, label=name)
        ticks = sorted({place for curve in curves.values() for place in curve})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set(xlabel=label, ylabel=unit)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def table(report: Report, title: str, label: str, curves: Curves, digits: str) -> None:
    """Print curves as a table, a column for each kernel."""
    places = sorted({place for curve in curves.values() for place in curve})
    rows = [[str(p), *(format(c[p], digits) if p in c else "" for c in curves.values())] for p in places]
    report.table(title, [label, *curves], rows)


def options(parser: ArgumentParser) -> None:
    """Add where to and how."""
    parser.add_argument("--folder", type=Path, default=IMAGES, help="where the pictures go (default docs/images)")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown, for docs/results/conv.md")


@torch.no_grad()
def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    chosen = arguments(__doc__ or "", given, options)
    torch.set_num_threads(chosen.threads)
    pace = Pace(0.2, 2, 5) if chosen.quick else Pace(2.0, 7, 31)
    if chosen.rounds:
        pace = Pace(0.0, chosen.rounds, chosen.rounds)
    bench = Bench(Report(chosen.json, chosen.markdown), pace, chosen.quick, Registry.load())
    for name, layers, of, label in (
        ("conv-kernel-size", SIZES[:: 3 if chosen.quick else 1], lambda conv: conv.kernel, "filter size"),
        ("conv-channels", CHANNELS[:: 3 if chosen.quick else 1], lambda conv: conv.channels, "channels and filters"),
    ):
        first = layers[0]
        fixed = "64 channels to 64, 56x56" if name == "conv-kernel-size" else f"3x3, {first.size}x{first.size}"
        title = f"forward, {fixed}, N={BATCH}, threads: {chosen.threads}"
        milliseconds, errors = measured(bench, layers, of)
        table(bench.report, f"{title}: ms", label, milliseconds, ".2f")
        table(bench.report, f"{title}: relative L2 error (N=1)", label, errors, ".1e")
        chosen.folder.mkdir(parents=True, exist_ok=True)
        draw(chosen.folder / f"{name}.png", title, label, milliseconds, errors)
    bench.report.close()


if __name__ == "__main__":
    main()
