"""Rounding kernels beside what PyTorch and QPyTorch offer for the same, in one thread.

Each side writes its result to memory that is there already, as far as its calls can. Throughput counts the bytes of the
float32 input. QPyTorch (``pip install qtorch``) is measured where it is installed; its import compiles for a minute.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Report, Side, interleave
from torch import Tensor

from engine.ops import round_bfloat16, round_fixed

IL, FL = 6, 10
HIGHEST, LOWEST = 2.0 ** (IL - 1) - 2.0**-FL, -(2.0 ** (IL - 1))
SIZES = (1 << 14, 1 << 17, 1 << 20)
STOCHASTIC, COUNTED, NEAREST, LAST = "stochastic", "stochastic, counted", "nearest", "stochastic, channels_last"
EXACT, ADDED, TORCH_NEAREST, QTORCH = "torch, floor and compare", "torch, floor(x + u)", "torch, round", "QPyTorch"
BFLOAT16, TORCH_BFLOAT16 = "stochastic to bfloat16", "torch, integers added"
TARGETS = {EXACT: 10.0, ADDED: 6.0, QTORCH: 20.0}
GIGABYTES = 7.0


def exact(x: Tensor, out: Tensor) -> None:
    """Round stochastically as the definition reads: up where a random number is below the fraction."""
    torch.mul(x, 2.0**FL, out=out)
    whole = out.floor()
    whole += torch.rand_like(out) < out.sub_(whole)
    torch.clamp(whole.mul_(2.0**-FL), LOWEST, HIGHEST, out=out)


def added(x: Tensor, out: Tensor) -> None:
    """Round stochastically by adding a random number, which large numbers have no room for."""
    torch.mul(x, 2.0**FL, out=out).add_(torch.rand_like(x)).floor_().mul_(2.0**-FL).clamp_(LOWEST, HIGHEST)


def nearest(x: Tensor, out: Tensor) -> None:
    """Round to the nearest."""
    torch.mul(x, 2.0**FL, out=out).round_().mul_(2.0**-FL).clamp_(LOWEST, HIGHEST)


def integers_added(x: Tensor, out: Tensor) -> None:
    """Round stochastically to bfloat16 by the bits: 16 random ones are added, and the lower half is cleared."""
    bits = x.view(torch.int32)
    drawn = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32)
    out.copy_((drawn.add_(bits) & -65536).view(torch.float32))


def qtorch_rounding() -> Callable[[Tensor], Tensor] | None:
    """Return QPyTorch's stochastic rounding to <IL, FL>, or None where it is not installed."""
    try:
        from qtorch.quant import fixed_point_quantize
    except ImportError:
        return None
    return lambda x: fixed_point_quantize(x, wl=IL + FL, fl=FL, rounding="stochastic")


def side(function: Callable[[], object], repeats: int) -> Side:
    """Return a side that calls a function some times, so that a turn is long enough to be timed."""

    def turn() -> None:
        for _ in range(repeats):
            function()

    return turn


def measure_size(report: Report, count: int, rounds: int, qtorch: Callable[[Tensor], Tensor] | None) -> None:
    """All sides on one number of elements."""
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 4
    out, small, counts = (
        torch.empty_like(x),
        torch.empty_like(x, dtype=torch.bfloat16),
        torch.zeros(5, dtype=torch.int64),
    )
    images = x.view(16, 64, -1, 16).contiguous(memory_format=torch.channels_last)
    results = torch.empty_like(images)
    step, repeats = torch.tensor(1), max(1, (1 << 20) // count)
    drawn = {"mode": "stochastic", "key": 1, "step": step}
    functions: dict[str, Callable[[], object]] = {
        STOCHASTIC: lambda: round_fixed(x, IL, FL, out=out, **drawn),
        COUNTED: lambda: round_fixed(x, IL, FL, out=out, counts=counts, **drawn),
        LAST: lambda: round_fixed(images, IL, FL, out=results, **drawn),
        NEAREST: lambda: round_fixed(x, IL, FL, out=out),
        EXACT: lambda: exact(x, out),
        ADDED: lambda: added(x, out),
        TORCH_NEAREST: lambda: nearest(x, out),
        BFLOAT16: lambda: round_bfloat16(x, out=small, **drawn),
        TORCH_BFLOAT16: lambda: integers_added(x, small),
    }
    if qtorch:
        functions[QTORCH] = lambda: qtorch(x)
    times = interleave({name: side(function, repeats) for name, function in functions.items()}, rounds, warmup=2)
    gigabytes = 4e-9 * count * repeats
    rows = [
        [
            name,
            f"{gigabytes / times.spread(name).median:.2f}",
            times.ratio(name, BFLOAT16 if name == TORCH_BFLOAT16 else STOCHASTIC).text(digits=1),
        ]
        for name in functions
    ]
    report.table(
        f"{count} elements, fixed point <{IL}, {FL}>", ["", "GB/s of input", "times as long as the engine's"], rows
    )
    name = f"stochastic rounding, {count} elements"
    report.claim(name, gigabytes / times.spread(STOCHASTIC).median, GIGABYTES, "GB/s", at_least=True)
    for other, target in TARGETS.items():
        if other in functions:
            report.claim(f"{name}, over {other}", times.ratio(other, STOCHASTIC).median, target, "x", at_least=True)
    gain = times.ratio(TORCH_BFLOAT16, BFLOAT16).median
    report.claim(f"stochastic rounding to bfloat16, {count} elements, over torch", gain, 5.0, "x", at_least=True)


def measure(report: Report, quick: bool) -> None:
    """All sizes in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            qtorch = None if quick else qtorch_rounding()
            for count in SIZES:
                measure_size(report, count, 7 if quick else 51, qtorch)
    finally:
        torch.set_num_threads(threads)
