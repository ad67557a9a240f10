"""Timing what computes: calls that take turns, and a convolution as a model calls it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.interfaces import DIRECTIONS, ConvKernel, ConvSpec

HOPELESS = 1.5  # times the fastest: out of the race after its trials
SECONDS, ROUNDS = 0.5, 7  # of measuring one direction of one layer, at most


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


def measure(spec: ConvSpec, direction: str, kernels: Sequence[ConvKernel], prepare: bool = False) -> dict[str, float]:
    """Return each kernel's milliseconds: the median of rounds in which all take turns, outputs allocated.

    The hopeless leave after three. prepare: forward calls get a prepared weight, as an evaluation gives it.
    """
    arrays = filled(spec)
    calls = {kernel.name: call(spec, direction, kernel, prepare, arrays) for kernel in kernels}
    return {name: statistics.median(times) for name, times in race(calls, stays=("native",), trials=3).items()}


def race(
    calls: Mapping[str, Callable[[], Tensor]],
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    stays: Sequence[str] = (),
    trials: int = 1,
) -> dict[str, list[float]]:
    """Return the milliseconds of each call's turns: all take turns until ``seconds`` or ``rounds`` are over.

    Each is called once untimed, then all take part in up to ``trials`` rounds. Those whose best turn was then
    HOPELESS times the fastest's leave with these times, unless named in ``stays``; for the others the trials were a
    second warm-up and do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for function in calls.values():
        milliseconds(function)
    _take_turns(calls, times, seconds, trials)
    tried = {name: len(t) for name, t in times.items()}
    best = {name: min(t) for name, t in times.items()}
    racing = {name: calls[name] for name in calls if best[name] <= HOPELESS * min(best.values()) or name in stays}
    _take_turns(racing, times, seconds, rounds)
    return {name: t[tried[name] :] or t for name, t in times.items()}


def _take_turns(
    calls: Mapping[str, Callable[[], Tensor]], times: Mapping[str, list[float]], seconds: float, rounds: int
) -> None:
    begun = time.perf_counter()
    for _ in range(rounds):
        for name, function in calls.items():
            times[name].append(milliseconds(function))
        if time.perf_counter() - begun > seconds:
            break


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
) -> Callable[[], Tensor]:
    """Return a call as a model makes it, through the op, without a bias, on ``arrays`` (``filled(spec)`` if None)."""
    images, weight, gradient = arrays or filled(spec)
    names = "/".join([kernel.name] * len(DIRECTIONS))
    geometry = (spec.stride, spec.padding, spec.dilation, spec.groups, names)
    ops = torch.ops.engine
    if direction == "backward_input":
        return lambda: ops.conv2d_input(gradient, weight, spec.input_shape, *geometry)
    if direction == "backward_weight":
        return lambda: ops.conv2d_weight(gradient, images, spec.weight_shape, *geometry)
    if prepare and (prepared := kernel.prepare(weight, spec)) is not weight:
        return lambda: ops.conv2d_prepared(images, prepared, None, spec.weight_shape, *geometry)
    return lambda: ops.conv2d(images, weight, None, *geometry)


def gflop(spec: ConvSpec) -> float:
    """Return 1e-9 x 2 x the multiply-adds of the definition, padding included: the same for every direction."""
    multiply_adds = torch.Size(spec.output_shape).numel() * torch.Size(spec.weight_shape[1:]).numel()
    return 2e-9 * multiply_adds
