"""``kernels=auto``: every kernel that may be chosen is timed on every layer, and the fastest is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.convolutions import Choice, Chooser, Layer
from engine.interfaces import ConvKernel, ConvSpec
from engine.measuring import measure
from engine.ops import NATIVE, register

from .memory import Memory

if TYPE_CHECKING:
    from engine import Kernels

    from . import Auto

TRAINING, EVALUATION = 1e-5, 2e-5  # error budgets: the first leaves out Winograd's 6x6 tiles
GAIN = 0.97  # of torch's own time that another kernel must stay below: within the noise nothing is gained


class AutoChooser(Chooser):
    """Times all candidates that the budgets allow on the real shapes; the fastest computes, torch's own among them."""

    def __init__(self, options: Auto, installed: Mapping[str, type[Kernels]]) -> None:
        super().__init__(NATIVE, options.layers, installed)
        self._options, self._memory = options, Memory(options.cache)
        self._plan: dict[str, Any] = {}
        kernels = [kernel for name in sorted(installed) for kernel in installed[name]().candidates()]
        self._candidates = {kernel.name: kernel for kernel in kernels if kernel.name != NATIVE.name}

    def plan(self) -> dict[str, Any]:
        """Return each layer's shape and kernels."""
        return self._plan

    def load(self, plan: dict[str, Any]) -> None:
        """Take up a plan: layers of the same shapes get the same kernels, unmeasured."""
        self._plan = dict(plan)

    def choose(self, layers: Sequence[Layer], training: bool, share: Callable[[Any], Any]) -> dict[str, Choice]:
        """Return the fastest kernels of each layer; layers of one shape are measured once."""
        for kernel in self._candidates.values():
            register(kernel)
        before, measured = self._plan, {}
        for layer in layers:
            spec = _spec(layer)
            for direction in layer.directions:
                if (spec, direction) not in measured and not self._decided(before, layer):
                    measured[spec, direction] = self._times(spec, direction, training)
        self._memory.keep()
        choices = {layer.name: self._choice(layer, measured, before) for layer in layers}
        plan = {name: [layer_facts(layer), dict(choices[name].kernels)] for layer in layers if (name := layer.name)}
        self._plan = share(plan)
        if self._plan != plan:  # another process measured
            choices = {layer.name: self._choice(layer, {}, self._plan) for layer in layers}
        return choices

    def _decided(self, plan: Mapping[str, Any], layer: Layer) -> bool:
        facts, kernels = plan.get(layer.name, (None, {}))
        known = set(kernels.values()) <= {NATIVE.name, *self._candidates}
        return facts == layer_facts(layer) and set(kernels) == set(layer.directions) and known

    def _choice(
        self, layer: Layer, measured: Mapping[tuple[ConvSpec, str], Mapping[str, float]], plan: Mapping[str, Any]
    ) -> Choice:
        if self._decided(plan, layer):
            return Choice({d: plan[layer.name][1][d] for d in layer.directions}, "as planned before")
        times = {direction: measured[_spec(layer), direction] for direction in layer.directions}
        return Choice({d: fastest(t) for d, t in times.items()}, "fastest as measured", times)

    def _times(self, spec: ConvSpec, direction: str, training: bool) -> Mapping[str, float]:
        """Return the milliseconds of torch's own and every candidate, from memory or measured now."""
        budget = self._options.error_budget or (TRAINING if training else EVALUATION)
        allowed: list[ConvKernel] = [NATIVE] + [
            kernel for kernel in self._candidates.values()
            if kernel.error <= budget and not kernel.refuses(spec, direction)
            and kernel.workspace(spec, direction) <= self._options.workspace << 20
        ]  # fmt: skip
        names = [kernel.name for kernel in allowed]
        times = self._memory.recall(spec, direction, training, names)
        if times is None:
            times = measure(spec, direction, allowed, prepare=not training)
            self._memory.note(spec, direction, training, times)
        return times


def layer_facts(layer: Layer) -> list[Any]:
    """Return what a plan's entry holds of a layer's shape, as JSON values."""
    return [*_spec(layer).sizes, str(_spec(layer).dtype)]


def fastest(times: Mapping[str, float]) -> str:
    """Return the kernel with the least time; torch's own unless another gains more than the noise."""
    best = min(times, key=lambda name: times[name])
    return best if times[best] < GAIN * times[NATIVE.name] else NATIVE.name


def _spec(layer: Layer) -> ConvSpec:
    assert layer.spec is not None
    return layer.spec
