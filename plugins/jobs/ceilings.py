"""What a machine can do at most: matrix products, convolutions, memory, copies to a GPU, the cost of a call."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd

import torch
from torch import Tensor

from engine import huge_pages
from engine.interfaces import ConvKernel, ConvSpec
from engine.measuring import Spread, call, gflop, race

LONGEST = 1500.0  # milliseconds that one matrix product may be expected to take
ROUNDS = 1000  # the time ends a race before
CALLS = 200  # of an op that are timed together


@dataclass(frozen=True)
class Figure:
    """One measured value. name: dotted, what other tools look it up by."""

    name: str
    spread: Spread
    unit: str
    note: str = ""


def _turns(calls: Mapping[str, Callable[[], Tensor]], seconds: float) -> dict[str, Spread]:
    """Return the milliseconds of calls that take turns; none leaves early."""
    return {name: Spread.of(times) for name, times in race(calls, seconds, ROUNDS, stays=list(calls)).items()}


def gemm(device: torch.device, sizes: Sequence[int], implicit: ConvKernel, seconds: float) -> Iterator[Figure]:
    """Yield GFLOP/s of n x n float32 products: torch.matmul, and our implicit GEMM as the 1x1 convolution it equals.

    A size that is expected to take longer than LONGEST, and all above it, are left out.
    """
    expected = 0.0
    for n in sizes:
        if expected > LONGEST:
            return
        left, right = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
        calls: dict[str, Callable[[], Tensor]] = {"torch": partial(torch.matmul, left, right)}
        width = gcd(n, 64)
        spec = ConvSpec(1, n, n // width, width, n, (1, 1), channels_last=True, device=device.type)
        if implicit.refuses(spec, "forward") is None:
            calls["implicit"] = call(spec, "forward", implicit)
        times = _turns(calls, seconds)
        expected = 8 * times["torch"].median  # at twice the size
        for name, spread in times.items():
            yield Figure(f"gemm.{device.type}.{n}.{name}", spread.rate(gflop(spec) * 1e3), "GFLOP/s")


def convolution(spec: ConvSpec, kernels: Sequence[ConvKernel], seconds: float) -> Iterator[Figure]:
    """Yield GFLOP/s, counted by the definition, of a forward convolution: torch's own, and the fastest of all."""
    taking = [kernel for kernel in kernels if kernel.refuses(spec, "forward") is None]
    times = race({kernel.name: call(spec, "forward", kernel) for kernel in taking}, seconds, ROUNDS, ("native",), 3)
    rates = {name: Spread.of(turns).rate(gflop(spec) * 1e3) for name, turns in times.items()}
    best = max(rates, key=lambda name: rates[name].median)
    name = f"conv3x3.{spec.device}.{spec.batch}x{spec.channels}x{spec.height}x{spec.width}"
    yield Figure(f"{name}.native", rates["native"], "GFLOP/s")
    yield Figure(f"{name}.best", rates[best], "GFLOP/s", best)


def mapped(count: int, huge: bool) -> Tensor:
    """Return float32 [count] on fresh pages, huge ones or small ones."""
    memory = mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge_pages.available():
        memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)


def _touched(count: int, huge: bool) -> Tensor:
    return mapped(count, huge).fill_(1.0)


def memory(size: int, seconds: float) -> Iterator[Figure]:
    """Yield GB/s of the CPU's memory on tensors of ``size`` bytes, on small pages and, where there are, on huge ones.

    Bytes are counted as the STREAM benchmark does (McCalpin 1995): what the program names, not what a cache fetches.
    """
    count = size // 4
    calls: dict[str, Callable[[], Tensor]] = {}
    moved: dict[str, int] = {}
    for huge in (True, False) if huge_pages.available() else (False,):
        a, b, c = (mapped(count, huge).fill_(value) for value in (1.0, 2.0, 3.0))
        pages = "huge" if huge else "small"
        calls[f"memory.{pages}.read"] = a.sum
        calls[f"memory.{pages}.copy"] = partial(b.copy_, a)
        calls[f"memory.{pages}.triad"] = partial(torch.add, b, c, alpha=0.5, out=a)
        calls[f"memory.{pages}.first_touch"] = partial(_touched, count, huge)
        for work, arrays in (("read", 1), ("copy", 2), ("triad", 3), ("first_touch", 1)):
            moved[f"memory.{pages}.{work}"] = arrays * 4 * count
    for name, spread in _turns(calls, seconds).items():
        yield Figure(name, spread.rate(moved[name] * 1e-6), "GB/s")


def copies(device: torch.device, size: int, seconds: float) -> Iterator[Figure]:
    """Yield GB/s of copies between the host's memory and a GPU's, pinned and pageable, and within the GPU's."""
    pageable = torch.ones(size // 4)
    pinned = pageable.pin_memory() if device.type == "cuda" else pageable.clone()
    on_device = pageable.to(device)
    other = torch.empty_like(on_device)
    calls: dict[str, Callable[[], Tensor]] = {
        "to_gpu.pinned": partial(on_device.copy_, pinned),
        "to_gpu.pageable": partial(on_device.copy_, pageable),
        "from_gpu.pinned": partial(pinned.copy_, on_device),
        "from_gpu.pageable": partial(pageable.copy_, on_device),
        "gpu.copy": partial(other.copy_, on_device),
    }
    for name, spread in _turns(calls, seconds).items():
        moved = 4 * (size // 4) * (2 if name == "gpu.copy" else 1)
        yield Figure(f"copy.{name}", spread.rate(moved * 1e-6), "GB/s")


def op_calls(seconds: float) -> Iterator[Figure]:
    """Yield the microseconds of a call of an op that has next to nothing to compute, without gradients."""
    one = torch.ones(1)
    image, weight = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    geometry = ((1, 1), (0, 0), (1, 1), 1, "native/native/native")
    calls: dict[str, Callable[[], Tensor]] = {
        "call.torch.add": lambda: torch.add(one, one),
        "call.torch.conv2d": lambda: torch.conv2d(image, weight),
        "call.engine.conv2d": lambda: torch.ops.engine.conv2d(image, weight, None, *geometry),
    }
    many = {name: partial(_repeat, function) for name, function in calls.items()}
    for name, spread in _turns(many, seconds).items():
        low, median, high = (value * 1e3 / CALLS for value in (spread.low, spread.median, spread.high))
        yield Figure(name, Spread(low, median, high), "us")


def _repeat(function: Callable[[], Tensor]) -> Tensor:
    for _ in range(CALLS - 1):
        function()
    return function()
