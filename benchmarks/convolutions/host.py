"""The section that lists what a call costs the host before any kernel computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Side, interleave
from torch import Tensor

from .gpu.replay import queueing
from .layers import Conv
from .measuring import LAYOUTS, NHWC, Bench, Operands

CALLS = 200  # of one turn
TINY = Conv("tiny", 8, 8, 4)
NATIVE, COMPILED = "native", "implicit"


def overhead(bench: Bench) -> None:
    """Microseconds of one call on tensors so small that computing them takes next to nothing; one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # A turn is many calls already: more of them before the GPU is waited for would fill its queue.
    host = partial(queueing, calls=1) if bench.clock.host is queueing else bench.clock.host
    rows: dict[str, list[str]] = {}
    heads = []
    for title, mode in (("forward", "none"), ("forward, weight trains", "forward"), ("and backward", "backward")):
        sides = {name: host(turn(call, mode)) for name, call in calls(bench).items()}
        times = interleave(sides, 5 if bench.quick else 31)
        heads += [f"{title}, us", f"more than {NHWC}"]
        for name in sides:
            own, more = times.spread(name), times.difference(name, NHWC)
            rows.setdefault(name, []).extend([own.text(1e6 / CALLS, 1), more.text(1e6 / CALLS, 1)])
    torch.set_num_threads(threads)
    title = f"time of one call, {TINY.text()}, N=1, 1 thread"
    bench.report.table(title, ["", *heads], [[name, *cells] for name, cells in rows.items()])


def calls(bench: Bench) -> dict[str, tuple[Callable[..., Tensor], Operands]]:
    """Return forward functions of images and weight with their operands: torch's layouts, and kernels by our op."""
    spec = TINY.spec(1, bench.device)
    geometry = (spec.stride, spec.padding, spec.dilation, spec.groups)
    arrays = {layout: Operands.of(spec, layout) for layout in LAYOUTS}
    found: dict[str, tuple[Callable[..., Tensor], Operands]] = {
        layout: (lambda x, w: torch.conv2d(x, w, None, *geometry), arrays[layout]) for layout in LAYOUTS
    }
    for kernel in bench.kernels((NATIVE, COMPILED)):
        if reason := kernel.refuses(spec, "forward"):
            raise SystemExit(f"nothing to measure: {kernel.name} refuses {TINY.text()}: {reason}")
        found[f"engine, {kernel.name}"] = (_op(*geometry, "/".join([kernel.name] * 3)), arrays[NHWC])
    return found


def _op(*geometry: Any) -> Callable[..., Tensor]:
    return lambda images, weight: torch.ops.engine.conv2d(images, weight, None, *geometry)


def turn(call: tuple[Callable[..., Tensor], Operands], mode: str) -> Side:
    """Return the side that makes many calls; mode: none (nothing trains), forward, backward (and both gradients)."""
    function, (images, weight, gradient) = call
    if mode != "none":
        weight = weight.clone().requires_grad_()
    if mode == "backward":
        images = images.clone().requires_grad_()

    def work() -> None:
        for _ in range(CALLS):
            out = function(images, weight)
            if mode == "backward":
                torch.autograd.grad(out, (images, weight), gradient)

    return work
