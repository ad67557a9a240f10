"""The section that measures matrix products against for-loops, in Python and in C++."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.measuring import call

from .layers import ASSIGNMENT, COMMON, Conv
from .measuring import LAYOUTS, NCHW, NHWC, Bench, Operands, compare, side, torch_call

Array = NDArray[Any]
KERNELS = ("im2col", "implicit", "naive")


def convolve(images: Array, weight: Array, stride: int, padding: int) -> Array:
    """Return the convolution of [n, c, h, w] and [k, c, i, j] as an assignment's first solution computes it.

    Four loops in Python, over images, filters, rows and columns of the output; the window's sum is numpy's.
    """
    count, filters, kernel = len(images), len(weight), weight.shape[2]
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = ((size - kernel) // stride + 1 for size in padded.shape[2:])
    out = np.zeros((count, filters, height, width), images.dtype)
    for n in range(count):
        for k in range(filters):
            for y in range(height):
                for x in range(width):
                    top, left = y * stride, x * stride
                    window = padded[n, :, top : top + kernel, left : left + kernel]
                    out[n, k, y, x] = np.sum(window * weight[k])
    return out


def im2col(bench: Bench) -> None:
    """Forward by im2col against Python's loops on the assignment's shape, and against loops in C++."""
    for conv, batch in ((ASSIGNMENT, 100), (COMMON, bench.batch)):
        spec = conv.spec(batch)
        arrays = {layout: Operands.of(spec, layout) for layout in LAYOUTS}
        kernels = bench.kernels(KERNELS)
        for kernel in kernels:
            if reason := kernel.refuses(spec, "forward"):
                raise SystemExit(f"nothing to measure: {kernel.name} refuses the assignment's layers: {reason}")
        sides = {k.name: side(call(spec, "forward", k, arrays=arrays[NHWC])) for k in kernels}
        sides |= {layout: side(torch_call(spec, "forward", arrays[layout])) for layout in LAYOUTS}
        times = compare(sides, bench.pace)
        rows = [[name, times.spread(name).text(1e3, 2), times.ratio("naive", name).text(digits=1)] for name in sides]
        title = f"{conv.text()}, N={batch}"
        if conv is ASSIGNMENT:
            seconds, count = python_seconds(conv, arrays[NCHW], batch, 5 if bench.quick else batch)
            measured = "once" if count == batch else f"once on {count} images, times {batch // count}"
            rows.append([f"Python loops, measured {measured}", f"{seconds * 1e3:.0f}", ""])
            gain = seconds / times.spread("im2col").median
            bench.claim("im2col over Python's for-loops, the assignment's shape", gain, 1000)
        bench.claim(f"im2col over naive C++, {title}", times.ratio("naive", "im2col").median, 30)
        bench.report.table(title, ["", "ms", "times as fast as naive C++"], rows)


def python_seconds(conv: Conv, operands: Operands, batch: int, count: int) -> tuple[float, int]:
    """Return the seconds that loops in Python take for ``batch`` images, measured on ``count`` of them, and ``count``.

    Raises SystemExit if they compute something else than torch does.
    """
    padding = conv.kernel // 2 if conv.padding is None else conv.padding
    images, weight = operands.images[:count].numpy(), operands.weight.numpy()
    begun = time.perf_counter()
    out = convolve(images, weight, conv.stride, padding)
    seconds = time.perf_counter() - begun
    expected = torch_call(conv.spec(count), "forward", operands._replace(images=operands.images[:count]))().numpy()
    if not np.allclose(out, expected, atol=1e-4):
        raise SystemExit("the loops in Python do not compute what torch does")
    return seconds * batch / count, count
