"""Sections that measure the CUDA kernels one by one: Winograd, FFT, implicit matrix product, depthwise."""

from __future__ import annotations

from collections.abc import Sequence

from engine.interfaces import DIRECTIONS

from ..kernels import mean
from ..layers import DEPTHWISE, LARGE, POINTWISE, VGG, Conv, some
from ..measuring import LAYOUTS, Bench
from .contest import TF32, Checked, contest

WINOGRAD, FFT, DIRECT = ("winograd2", "winograd4"), ("fft",), ("depthwise",)
PRODUCTS = ("implicit", "im2col")  # the second writes the matrix out: what that costs is shown, not claimed
BEST = "over cuDNN's best"


def winograd(bench: Bench) -> None:
    """Forward on VGG-16, weights transformed inside the call, one image to many."""
    for batch in (1, 8) if bench.quick else (1, 4, 8, 32):
        name, layers, contests = compared(bench, "Winograd forward, VGG-16", VGG, batch, "forward", WINOGRAD)
        bench.claim(f"{name}, {BEST}", mean(layers, contests), 1.5 if batch <= 4 else 1.3)


def backward(bench: Bench) -> None:
    """All three directions of VGG-16's layers, by Winograd and by the implicit matrix product."""
    for direction in DIRECTIONS:
        compared(bench, f"{direction}, VGG-16", VGG, bench.batch, direction, (*WINOGRAD, PRODUCTS[0]))


def implicit(bench: Bench) -> None:
    """Forward by matrix products on 3x3 and on 1x1 layers."""
    for kind, layers in (("3x3", VGG), ("1x1", POINTWISE)):
        for batch in (bench.batch,) if bench.quick else (8, 32):
            title = f"implicit matrix product, forward, {kind} layers"
            name, taken, contests = compared(bench, title, layers, batch, "forward", PRODUCTS)
            bench.claim(f"{name}, {BEST}", mean(taken, contests, kernel=PRODUCTS[0]), 0.8)


def fft(bench: Bench) -> None:
    """Forward by FFT, 64 channels to 64 on images of 56x56, by size of the filters."""
    by_size(bench, "FFT forward", [conv for conv in LARGE if conv.kernel in (5, 11) or not bench.quick], FFT,
            {11: 3.0, 31: 8.0})  # fmt: skip


def depthwise(bench: Bench) -> None:
    """Forward of large depthwise kernels."""
    by_size(bench, "depthwise forward", DEPTHWISE[: 2 if bench.quick else None], DIRECT, {7: 1.5, 31: 8.0})


def by_size(bench: Bench, title: str, layers: Sequence[Conv], names: Sequence[str], targets: dict[int, float]) -> None:
    """Measure layers of different filters, and claim where there is a target for the size."""
    name, _, contests = compared(bench, title, layers, bench.batch, "forward", names, every=True)
    for conv, found in zip(layers, contests, strict=True):
        if conv.kernel in targets:
            bench.claim(f"{name}, K={conv.kernel}, {BEST}", found.gain().median, targets[conv.kernel])


def compared(
    bench: Bench,
    title: str,
    layers: Sequence[Conv],
    batch: int,
    direction: str,
    names: Sequence[str],
    every: bool = False,
) -> tuple[str, Sequence[Conv], list[Checked]]:
    """Measure layers, with ``--quick`` three of them unless ``every``; print, and return title, layers and contests."""
    layers = layers if every or not bench.quick else some(layers, 3)
    contests = [contest(bench, conv.spec(batch, bench.device), direction, names) for conv in layers]
    title = f"{title}, N={batch}"
    table(bench, title, layers, contests, names)
    return title, layers, contests


def table(bench: Bench, title: str, layers: Sequence[Conv], contests: Sequence[Checked], names: Sequence[str]) -> None:
    """Print a line for each layer: the kernels' milliseconds, gains, the host's time; then all errors."""
    heads = ["layer", *(f"{name}, ms" for name in (*names, *LAYOUTS)), "fastest", "times cuDNN's best"]
    heads += ["TF32, ms", "TF32, times cuDNN's best", "host of the fastest, us", "host of cuDNN's best, us"]
    sides, rows, errors = (*names, *LAYOUTS, *TF32.values()), [], []
    for conv, found in zip(layers, contests, strict=True):
        row = [conv.text(), *(_milliseconds(found, name) for name in (*names, *LAYOUTS)), found.best]
        row += [found.gain().text(digits=2), _milliseconds(found, found.in_tf32)]
        row += [found.gain(kernel=found.in_tf32).text(digits=2)]
        rows.append([*row, *(found.host.spread(name).text(1e6, 1) for name in (found.best, found.layout))])
        errors.append([conv.text(), *(f"{found.errors[n]:.1e}" if n in found.errors else "refused" for n in sides)])
    bench.report.table(title, heads, rows)
    bench.report.table(f"{title}: relative L2 error against float64", ["layer", *sides], errors)


def _milliseconds(found: Checked, name: str) -> str:
    return found.times.spread(name).text(1e3, 4) if name in found.times else "refused"
