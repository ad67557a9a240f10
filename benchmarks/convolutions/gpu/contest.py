"""Measuring one convolution on a GPU: first whether it is computed rightly, then the host's time, then the kernels'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from harness import Times, interleave
from torch import Tensor

from engine.interfaces import ConvKernel, ConvSpec
from engine.measuring import call

from ..measuring import LAYOUTS, NCHW, NHWC, Bench, Call, Contest, Operands, compare, entrants, fastest, torch_call
from .device import in_tf32, setting

TF32 = {layout: f"{layout}, TF32" for layout in LAYOUTS}
HOST_ROUNDS = 5


@dataclass(frozen=True)
class Checked(Contest):
    """A contest of kernels whose results were compared with float64: their relative L2 errors, and torch's.

    times: of the kernels alone, torch's with TF32 among them. host: what a call takes the host.
    """

    errors: Mapping[str, float]
    host: Times

    @property
    def in_tf32(self) -> str:
        """Torch's faster layout with TF32."""
        return min(TF32.values(), key=lambda name: self.times.spread(name).median)


def contest(bench: Bench, spec: ConvSpec, direction: str, names: Sequence[str]) -> Checked:
    """Measure a direction of a layer: all of the named kernels that take it, against torch's own in both layouts.

    The fastest kernel is found in rounds that do not count. Raises SystemExit where all of them refuse the layer, or
    one is less exact than it says.
    """
    kernels = entrants(bench, spec, direction, names)
    arrays = {layout: Operands.of(spec, layout) for layout in LAYOUTS}
    plain: dict[str, Call] = {n: call(spec, direction, k, arrays=arrays[NHWC]) for n, k in kernels.items()}
    plain |= {layout: torch_call(spec, direction, arrays[layout]) for layout in LAYOUTS}
    calls = plain | {TF32[layout]: in_tf32(plain[layout]) for layout in LAYOUTS}
    errors = relative_errors(calls, in_float64(spec, direction, arrays[NCHW]))
    require_exact(spec, direction, kernels, errors)
    host = interleave({name: bench.clock.host(function) for name, function in plain.items()}, HOST_ROUNDS)
    sides = {name: bench.clock.side(function) for name, function in calls.items()}
    best = fastest({name: sides[name] for name in kernels})
    return Checked(compare(sides, bench.pace), best, errors, host)


def in_float64(spec: ConvSpec, direction: str, operands: Operands) -> Tensor:
    """Return what torch's own computes of these arrays in float64."""
    with setting(torch.backends.cudnn, "benchmark", False):  # nobody waits for its fastest algorithm
        wide = Operands(*(array.double() for array in operands))
        return torch_call(replace(spec, dtype=torch.float64), direction, wide)()


def relative_errors(calls: Mapping[str, Call], expected: Tensor) -> dict[str, float]:
    """Return the L2 norm of each result's difference divided by that of what is expected."""
    norm = float(expected.norm())
    return {name: float((function().double() - expected).norm()) / norm for name, function in calls.items()}


def require_exact(
    spec: ConvSpec, direction: str, kernels: Mapping[str, ConvKernel], errors: Mapping[str, float]
) -> None:
    """Raise SystemExit naming a kernel whose error is not within its bound: its time would mean nothing."""
    for name, kernel in kernels.items():
        if not errors[name] <= kernel.error:  # not: NaN is an error too
            raise SystemExit(
                f"{name} does not compute the {direction} of {spec}: its relative L2 error against float64 is "
                f"{errors[name]:.2g}, and its bound is {kernel.error:g}"
            )
