"""Timing what computes: calls that take turns, and a convolution as a model calls it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.interfaces import DIRECTIONS, ConvKernel, ConvSpec

HOPELESS = 1.5  # times the fastest: out of the race after its trials
SECONDS, ROUNDS = 0.5, 21  # of measuring one direction of one layer, at most, unless single turns take longer


@dataclass(frozen=True)
class Spread:
    """The middle of some measurements: quartiles and median."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the quartiles of one value or more, interpolated between neighbours."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def rate(self, work: float) -> Spread:
        """Return how much of ``work`` is done in a unit of this time: its quartiles, the slow end first."""
        return Spread(work / self.high, work / self.median, work / self.low)


def measure(
    spec: ConvSpec,
    direction: str,
    kernels: Sequence[ConvKernel],
    prepare: bool = False,
    bias: bool = False,
    failed: Callable[[ConvKernel, Exception], None] | None = None,
) -> dict[str, float]:
    """Return each kernel's milliseconds: the median of rounds in which all take turns, outputs allocated.

    The hopeless leave after three; who is left has three turns or more, however long one takes. prepare: forward
    calls get a prepared weight, as an evaluation gives it. bias: as for ``call``. A kernel that raises an Exception
    is handed to ``failed``, if there is one, and left out; torch's own is never left out. Autocasting is off: the
    arrays are of the spec's type.
    """
    with torch.autocast(spec.device, enabled=False):
        arrays = filled(spec)
        taking = {kernel.name: kernel for kernel in kernels}
        while True:
            try:
                calls = {
                    name: partial(_guarded, name, _guarded(name, call, spec, direction, kernel, prepare, arrays, bias))
                    for name, kernel in taking.items()
                }
                times = race(calls, stays=("native",), trials=3, least=3)
                return {name: statistics.median(values) for name, values in times.items()}
            except _Failure as failure:
                if failed is None or failure.kernel == "native":
                    raise failure.cause from None
                failed(taking.pop(failure.kernel), failure.cause)  # the others race anew


class _Failure(Exception):
    """Says which kernel raised what."""

    def __init__(self, kernel: str, cause: Exception) -> None:
        super().__init__(kernel)
        self.kernel, self.cause = kernel, cause


def _guarded(kernel: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what ``function(*arguments)`` does; an Exception that it raises becomes a _Failure of the kernel."""
    try:
        return function(*arguments)
    except Exception as error:
        raise _Failure(kernel, error) from error


def lacks_memory(error: Exception) -> bool:
    """Return whether memory could not be allocated; on a CPU torch says so by its allocator's name alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def race(
    calls: Mapping[str, Callable[[], Tensor]],
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    stays: Sequence[str] = (),
    trials: int = 1,
    least: int = 1,
) -> dict[str, list[float]]:
    """Return the milliseconds of each call's turns: all take turns until ``seconds`` or ``rounds`` are over.

    Each is called once untimed, then all take part in up to ``trials`` rounds. Those whose best turn was then
    HOPELESS times the fastest's leave with these times, unless named in ``stays``; for the others the trials were a
    second warm-up and do not count. Where two or more are left they have ``least`` rounds, whatever the time. Calls
    whose results are all on the current GPU are timed there, others by the host's clock until they are done.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    here = [_on_current_gpu(_untimed(function)) for function in calls.values()]
    turn = _turn_on_gpu if here and all(here) else _turn
    _take_turns(turn, calls, times, seconds, trials)
    tried = {name: len(t) for name, t in times.items()}
    best = {name: min(t) for name, t in times.items()}
    racing = {name: calls[name] for name in calls if best[name] <= HOPELESS * min(best.values()) or name in stays}
    _take_turns(turn, racing, times, seconds, rounds, least if len(racing) > 1 else 1)
    return {name: t[tried[name] :] or t for name, t in times.items()}


def _take_turns(
    turn: Callable[[Sequence[Callable[[], Tensor]]], Sequence[float]],
    calls: Mapping[str, Callable[[], Tensor]],
    times: Mapping[str, list[float]],
    seconds: float,
    rounds: int,
    least: int = 1,
) -> None:
    begun = time.perf_counter()
    for done in range(1, rounds + 1):
        # In another order every round: none always finds the caches as the same other one leaves them.
        order = random.Random(done).sample(list(calls), len(calls))
        for name, value in zip(order, turn([calls[name] for name in order]), strict=True):
            times[name].append(value)
        if time.perf_counter() - begun > seconds and done >= least:
            break


def _turn(calls: Sequence[Callable[[], Tensor]]) -> list[float]:
    return [milliseconds(function) for function in calls]


def _turn_on_gpu(calls: Sequence[Callable[[], Tensor]]) -> list[float]:
    """Return the milliseconds of calls that the current GPU does one after the other, by events between them.

    The host waits for none but the last. An untimed call of the first goes ahead, so that the GPU has something to do
    while the host queues what is timed; where the host takes longer than the GPU the difference is in the times.
    """
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in calls]
    _untimed(calls[0])
    for function, (begin, end) in zip(calls, events, strict=True):
        begin.record()
        _untimed(function)
        end.record()
    events[-1][1].synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def _on_current_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.device.index == torch.cuda.current_device()


def _untimed(function: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return function()


def ratios(times: Sequence[float], over: Sequence[float]) -> Spread:
    """Return how many times as long as ``over`` a call took: round by round, or of the medians for one that left."""
    if len(times) != len(over):
        return Spread.of([statistics.median(times) / statistics.median(over)])
    return Spread.of([a / b for a, b in zip(times, over, strict=True)])


def milliseconds(function: Callable[[], Tensor]) -> float:
    """Return how long one call takes, without gradients, until a GPU is done with it."""
    with torch.no_grad():
        begun = time.perf_counter()
        result = function()
        if result.is_cuda:
            torch.cuda.synchronize(result.device)
        return 1e3 * (time.perf_counter() - begun)


def filled(spec: ConvSpec, nhwc: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, weight and output's gradient of noise, in NHWC order or in NCHW order."""
    layout = torch.channels_last if nhwc else torch.contiguous_format
    generator = torch.Generator(spec.device).manual_seed(0)  # its own: a run's draws are not disturbed
    images, weight, gradient = (
        torch.randn(shape, dtype=spec.dtype, device=spec.device, generator=generator).contiguous(memory_format=layout)
        for shape in (spec.input_shape, spec.weight_shape, spec.output_shape)
    )
    return images, weight, gradient


def call(
    spec: ConvSpec,
    direction: str,
    kernel: ConvKernel,
    prepare: bool = False,
    arrays: tuple[Tensor, Tensor, Tensor] | None = None,
    bias: bool = False,
) -> Callable[[], Tensor]:
    """Return a call as a model makes it, through the op, on ``arrays`` (``filled(spec)`` if None).

    bias: forward adds one, and backward_weight computes its gradient too, which torch's own does in the same call.
    """
    images, weight, gradient = arrays or filled(spec)
    names = "/".join([kernel.name] * len(DIRECTIONS))
    geometry = (spec.stride, spec.padding, spec.dilation, spec.groups, names)
    ops = torch.ops.engine
    if direction == "backward_input":
        return lambda: ops.conv2d_input(gradient, weight, spec.input_shape, *geometry)
    if direction == "backward_weight":
        if not bias:
            return lambda: ops.conv2d_weight(gradient, images, spec.weight_shape, *geometry)
        if kernel.name == "native":
            fused = (spec.stride, spec.padding, spec.dilation, False, (0, 0), spec.groups, (False, True, True))
            return lambda: torch.ops.aten.convolution_backward(gradient, images, weight, [spec.filters], *fused)[1]
        # A sum beside the op, as the op's own autograd has it.
        return lambda: (ops.conv2d_weight(gradient, images, spec.weight_shape, *geometry), gradient.sum((0, 2, 3)))[0]
    constant = torch.zeros(spec.filters, dtype=spec.dtype, device=spec.device) if bias else None
    if prepare and (prepared := kernel.prepare(weight, spec)) is not weight:
        return lambda: ops.conv2d_prepared(images, prepared, constant, spec.weight_shape, *geometry)
    return lambda: ops.conv2d(images, weight, constant, *geometry)


def gflop(spec: ConvSpec) -> float:
    """Return 1e-9 x 2 x the multiply-adds of the definition, padding included: the same for every direction."""
    multiply_adds = torch.Size(spec.output_shape).numel() * torch.Size(spec.weight_shape[1:]).numel()
    return 2e-9 * multiply_adds
