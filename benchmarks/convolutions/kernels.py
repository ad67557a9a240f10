"""Sections that measure kernels one by one: Winograd, FFT, implicit matrix product, im2col, depthwise."""

from __future__ import annotations

from collections.abc import Sequence

from .layers import DEPTHWISE, LARGE, POINTWISE, VGG, Conv, some
from .measuring import LAYOUTS, NCHW, NHWC, Bench, Contest, contest, geometric_mean

WINOGRAD = ("winograd2", "winograd4", "winograd6")
EXACT = "winograd4"  # the largest tile that the default error budget of training allows; shown beside the fastest
FFT, IMPLICIT, DIRECT = ("fft",), ("implicit",), ("depthwise",)


def winograd(bench: Bench) -> None:
    """Forward on VGG-16, weights transformed inside the call and prepared, in batches and one by one."""
    for batch, inside, prepared in ((bench.batch, 2.5, 3.0), (1, 1.7, 2.0)):
        for ready, target in ((False, inside), (True, prepared)):
            weights = "prepared weights" if ready else "weights transformed inside"
            name = f"Winograd forward, VGG-16, N={batch}, {weights}"
            layers = some(VGG, 3) if bench.quick else VGG
            contests = [contest(bench, conv.spec(batch), "forward", WINOGRAD, ready, EXACT) for conv in layers]
            table(bench, name, layers, contests, EXACT)
            bench.claim(f"{name}, over {NHWC}", mean(layers, contests, NHWC), target)
            bench.claim(f"{name}, over {NHWC}, 4x4 tiles alone", mean(layers, contests, NHWC, EXACT), target)


def backward(bench: Bench) -> None:
    """Both gradients by Winograd on VGG-16."""
    layers = some(VGG, 3) if bench.quick else VGG
    for direction, target in (("backward_weight", 3.0), ("backward_input", 2.0)):
        name = f"Winograd {direction}, VGG-16, N={bench.batch}"
        contests = [contest(bench, conv.spec(bench.batch), direction, WINOGRAD, also=EXACT) for conv in layers]
        table(bench, name, layers, contests, EXACT)
        bench.claim(f"{name}, over torch's faster layout", mean(layers, contests), target)
        bench.claim(f"{name}, over torch's faster layout, 4x4 tiles alone", mean(layers, contests, "", EXACT), target)


def fft(bench: Bench) -> None:
    """Forward by FFT, 64 channels to 64 on images of 56x56, by size of the filters."""
    targets = {5: 2.0, 7: 3.0, 11: 5.0, 15: 7.0, 31: 12.0}
    layers = [conv for conv in LARGE if conv.kernel in (5, 11)] if bench.quick else LARGE
    contests = [contest(bench, conv.spec(bench.batch), "forward", FFT) for conv in layers]
    table(bench, f"FFT forward, N={bench.batch}", layers, contests)
    for conv, result in zip(layers, contests, strict=True):
        bench.claim(f"FFT forward, K={conv.kernel}, N={bench.batch}", result.gain().median, targets[conv.kernel])


def implicit(bench: Bench) -> None:
    """Forward by implicit matrix product on 3x3 and on 1x1 layers."""
    for kind, all_layers, target in (("3x3", VGG, 0.9), ("1x1", POINTWISE, 1.5)):
        layers = some(all_layers, 3) if bench.quick else all_layers
        contests = [contest(bench, conv.spec(bench.batch), "forward", IMPLICIT) for conv in layers]
        name = f"implicit matrix product, forward, {kind} layers, N={bench.batch}"
        table(bench, name, layers, contests)
        bench.claim(f"{name}, over torch's faster layout", mean(layers, contests), target)


def depthwise(bench: Bench) -> None:
    """Forward of large depthwise kernels."""
    layers = DEPTHWISE[:2] if bench.quick else DEPTHWISE
    contests = [contest(bench, conv.spec(bench.batch), "forward", DIRECT) for conv in layers]
    table(bench, f"depthwise forward, N={bench.batch}", layers, contests)
    for conv, result in zip(layers, contests, strict=True):
        target = {5: 2.0, 7: 1.5, 31: 1.5}[conv.kernel]
        name = f"depthwise forward, K={conv.kernel}, N={bench.batch}, over torch's faster layout"
        bench.claim(name, result.gain().median, target)


def mean(layers: Sequence[Conv], contests: Sequence[Contest], over: str = "", kernel: str = "") -> float:
    """Return the geometric mean of the gains, equal layers counted as often as a network has them."""
    times = [conv.times for conv in layers]
    gains = [c.gain(over, kernel if kernel in c.times else "").median for c in contests]
    return geometric_mean(gains, times)


def table(bench: Bench, title: str, layers: Sequence[Conv], contests: Sequence[Contest], also: str = "") -> None:
    """Print milliseconds of all sides and the gains, a line for each layer."""
    heads = ["layer", f"{NHWC}, ms", f"{NCHW}, ms", "engine, ms", "kernel", f"times {NHWC}", f"times {NCHW}"]
    rows = []
    for conv, c in zip(layers, contests, strict=True):
        row = [conv.text(), *(c.times.spread(name).text(1e3, 2) for name in (*LAYOUTS, c.best)), c.best]
        row += [c.gain(layout).text(digits=2) for layout in LAYOUTS]
        if also:
            row.append(c.gain(NHWC, also).text(digits=2) if also in c.times else "refused")
        rows.append(row)
    bench.report.table(title, [*heads, *([f"{also}, times {NHWC}"] if also else [])], rows)
