"""Measuring one convolution: the engine's kernels beside torch's own, in both of its layouts.

The engine is called as a model calls it, through ``torch.ops.engine``, so the host's time is part of it; torch through
``torch.conv2d`` and ``aten::convolution_backward``. Every call of either allocates its output. How a call is timed is
what a ``Clock`` says: here that of the CPU, in ``gpu/replay.py`` that of GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from harness import Report, Side, Spread, Times, interleave
from torch import Tensor

from engine.interfaces import ConvKernel, ConvSpec
from engine.measuring import call
from engine.ops import register
from engine.options import Kernels
from engine.registry import Registry

NHWC, NCHW = "torch channels_last", "torch NCHW"
LAYOUTS = (NHWC, NCHW)
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Pace:
    """How long a comparison takes: as many rounds as ``seconds`` allow, within bounds."""

    seconds: float
    least: int
    most: int

    def rounds(self, round_seconds: float) -> int:
        """Return the number of rounds that take so long each."""
        return max(self.least, min(self.most, int(self.seconds / round_seconds)))


def side(function: Callable[[], Any]) -> Side:
    """Return the side that makes one call and lets go of its result, which is part of the work."""

    def turn() -> None:
        function()

    return turn


@dataclass(frozen=True)
class Clock:
    """How the calls of a comparison are timed, and where: what makes a side of a function."""

    device: str
    side: Callable[[Callable[[], Any]], Side]  # its time until the result is there, kernels alone on a GPU
    host: Callable[[Callable[[], Any]], Side]  # the time until the host may go on


WALL = Clock("cpu", side, side)


@dataclass
class Bench:
    """What every section is given."""

    report: Report
    pace: Pace
    quick: bool
    registry: Registry
    clock: Clock = WALL

    @property
    def device(self) -> str:
        """The type of the device that both sides compute on."""
        return self.clock.device

    @property
    def batch(self) -> int:
        """Images of a call, where a section does not say otherwise."""
        return 2 if self.quick else 8

    def claim(self, name: str, value: float, target: float) -> None:
        """Note that ``value`` is to be at least ``target``; with ``--quick`` the name says that it is of a part."""
        self.report.claim(name + (" (quick: of a part)" if self.quick else ""), value, target, "x", at_least=True)

    @property
    def installed(self) -> dict[str, type[Kernels]]:
        """The choices of ``kernels=``, by name."""
        return {name: self.registry.entry("kernels", name).options for name in self.registry.names("kernels")}  # type: ignore[misc]

    def kernels(self, names: Sequence[str]) -> list[ConvKernel]:
        """Return the kernels of these names, known to the ops. Raises KeyError for one that nobody supplies."""
        choices = [choice for name, choice in self.installed.items() if name != "auto"]
        found = {k.name: k for choice in choices for k in (choice().kernel(), *choice().candidates())}
        for name in names:
            register(found[name])
        return [found[name] for name in names]


class Operands(NamedTuple):
    """What the three directions of a layer are computed from."""

    images: Tensor
    weight: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, spec: ConvSpec, layout: str) -> Operands:
        """Return arrays of normal noise, the same values in both layouts and on every device."""
        generator = torch.Generator().manual_seed(0)
        order = torch.channels_last if layout == NHWC else torch.contiguous_format
        shapes = (spec.input_shape, spec.weight_shape, spec.output_shape)
        values = (torch.randn(shape, generator=generator) for shape in shapes)
        return cls(*(value.to(spec.device).contiguous(memory_format=order) for value in values))


def torch_call(spec: ConvSpec, direction: str, operands: Operands) -> Call:
    """Return a call of torch's own convolution."""
    images, weight, gradient = operands
    geometry = (spec.stride, spec.padding, spec.dilation)
    if direction == "forward":
        return lambda: torch.conv2d(images, weight, None, *geometry, spec.groups)
    backward = torch.ops.aten.convolution_backward
    which = 0 if direction == "backward_input" else 1
    wanted = (which == 0, which == 1, False)
    return lambda: backward(gradient, images, weight, None, *geometry, False, (0, 0), spec.groups, wanted)[which]


def compare(sides: dict[str, Side], pace: Pace) -> Times:
    """Let all sides take turns for as long as the pace says, after one round that shows how long a round is."""
    first = interleave(sides, rounds=1)
    return interleave(sides, pace.rounds(sum(seconds for [seconds] in first.values())), warmup=0)


@dataclass(frozen=True)
class Contest:
    """Times of torch's two layouts and of the engine's kernels, of which ``best`` was the fastest in a trial before."""

    times: Times
    best: str

    @property
    def layout(self) -> str:
        """Torch's faster layout."""
        return min(LAYOUTS, key=lambda layout: self.times.spread(layout).median)

    def gain(self, over: str = "", kernel: str = "") -> Spread:
        """Return how many times as fast as ``over`` (default: torch's faster layout) a kernel (the best) is."""
        return self.times.ratio(over or self.layout, kernel or self.best)


def contest(
    bench: Bench, spec: ConvSpec, direction: str, names: Sequence[str], prepared: bool = False, also: str = ""
) -> Contest:
    """Measure a direction of a layer: the fastest of the named kernels, and ``also`` another, against torch's own.

    The fastest is found first, in rounds that do not count. Raises SystemExit where all of them refuse the layer.
    """
    taken, arrays = entrants(bench, spec, direction, names), {layout: Operands.of(spec, layout) for layout in LAYOUTS}
    ours = {n: bench.clock.side(call(spec, direction, k, prepared, arrays[NHWC])) for n, k in taken.items()}
    best = fastest(ours)
    kept = {name: ours[name] for name in ours if name in (best, also)}
    native = {layout: bench.clock.side(torch_call(spec, direction, arrays[layout])) for layout in LAYOUTS}
    return Contest(compare(kept | native, bench.pace), best)


def entrants(bench: Bench, spec: ConvSpec, direction: str, names: Sequence[str]) -> dict[str, ConvKernel]:
    """Return those of the named kernels that take a direction of a layer. Raises SystemExit where all refuse it."""
    kernels = {kernel.name: kernel for kernel in bench.kernels(names)}
    refused = {name: reason for name, kernel in kernels.items() if (reason := kernel.refuses(spec, direction))}
    if len(refused) == len(kernels):
        raise SystemExit(f"nothing to measure in the {direction} of {spec}: {refused}")
    return {name: kernel for name, kernel in kernels.items() if name not in refused}


def fastest(sides: dict[str, Side]) -> str:
    """Return the name of the side with the best turn in a trial."""
    if len(sides) == 1:
        return next(iter(sides))
    trial = interleave(sides, rounds=2)
    return min(sides, key=lambda name: min(trial[name]))


def geometric_mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Return the mean of ratios, each counted as often as its weight says."""
    weights = weights or [1.0] * len(values)
    return math.exp(sum(w * math.log(v) for v, w in zip(values, weights, strict=True)) / sum(weights))
