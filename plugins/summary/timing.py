"""How long each layer takes, alone, on arrays of noise of the sizes that it is really given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from engine import Session, UsageError
from engine.composed import composed_model, explained
from engine.convolutions import Layer, nameable, survey
from engine.errors import did_you_mean
from engine.interfaces import ConvKernel
from engine.layers import modes_kept, torch_draws_kept
from engine.measuring import call as call_of
from engine.measuring import race
from engine.ops import NATIVE, register

ROUNDS = 21


@dataclass(frozen=True)
class Time:
    """Milliseconds of a layer forward, and of all that training needs of it backward; None: it does not compute so."""

    forward: float | None = None
    backward: float | None = None


def kernels_to_time(session: Session, names: Sequence[str]) -> list[ConvKernel]:
    """Return torch's own kernel and those of ``names``. Raises UsageError for a name that there is none of."""
    installed: dict[str, Any] = {
        name: session.registry.entry("kernels", name).options for name in session.registry.names("kernels")
    }
    known = nameable(installed)
    for name in names:
        if name not in known:
            raise UsageError(f"compare: there is no kernel '{name}'{did_you_mean(name, known)}")
    kernels = {NATIVE.name: NATIVE} | {known[name].name: known[name] for name in names}
    for kernel in kernels.values():
        register(kernel)
    return list(kernels.values())


def times_of(
    session: Session, image: Sequence[int], classes: int, batch: int, kernels: Sequence[ConvKernel], seconds: float
) -> dict[str, dict[str, Time]]:
    """Return, by layer and by kernel, the times of the composed model's layers for micro-batches of such images.

    Convolutions are timed by each kernel that takes them, other layers as they are, under torch's own name.
    """
    model, _, precision = composed_model(session, image, classes)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    shape = (batch, image[0], image[1], image[2])
    with explained(image), torch_draws_kept(device), precision.forward():
        layers = {layer.name: layer for layer in survey(model, shape) if layer.spec is not None}
        inputs = _inputs(model, torch.randn(shape, device=device, dtype=precision.dtype))
        times: dict[str, dict[str, Time]] = {}
        for name, (given, learns) in inputs.items():
            if name in layers:
                times[name] = _convolution(layers[name], kernels, seconds)
            else:
                times[name] = {NATIVE.name: _layer(model.get_submodule(name), given, learns, seconds)}
    return times


def _inputs(model: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, bool]]:
    """Return what each layer that is given one tensor is given, and whether that needs a gradient."""
    found: dict[str, tuple[Tensor, bool]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if len(arguments) == 1 and isinstance(arguments[0], Tensor):
                found.setdefault(name, (arguments[0].detach(), arguments[0].requires_grad))

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if next(module.children(), None) is None]
    watches = [module.register_forward_pre_hook(note(name)) for name, module in leaves]
    try:
        with modes_kept(model):
            model.eval()(images)
    finally:
        for watch in watches:
            watch.remove()
    return {name: found[name] for name, _ in leaves if name in found}


def _convolution(layer: Layer, kernels: Sequence[ConvKernel], seconds: float) -> dict[str, Time]:
    assert layer.spec is not None, "those without are left out"
    spent: dict[str, dict[str, float]] = {}
    for direction in layer.directions:
        taking = [kernel for kernel in kernels if kernel.refuses(layer.spec, direction) is None]
        with torch.autocast(layer.spec.device, enabled=False):
            calls = {kernel.name: call_of(layer.spec, direction, kernel) for kernel in taking}
            for name, values in race(calls, seconds, ROUNDS, stays=list(calls)).items():
                spent.setdefault(name, {})[direction] = median(values)
    return {
        name: Time(by.get("forward"), sum(by[d] for d in layer.directions if d != "forward") or None)
        for name, by in spent.items()
        if set(layer.directions) <= set(by)
    }


def _layer(module: nn.Module, given: Tensor, learns: bool, seconds: float) -> Time:
    given = given.clone().requires_grad_(learns and given.is_floating_point())
    forward = _median(lambda: module(given.detach()), seconds)
    made = module(given.clone() if learns else given)
    wanted = [t for t in (given, *module.parameters()) if t.requires_grad]
    if not wanted or not made.requires_grad:
        return Time(forward)
    gradient = torch.randn_like(made)
    return Time(
        forward,
        _median(lambda: torch.autograd.grad(made, wanted, gradient, retain_graph=True, allow_unused=True)[0], seconds),
    )


def _median(function: Callable[[], Tensor], seconds: float) -> float:
    return median(race({"layer": function}, seconds, ROUNDS)["layer"])


def total(times: Mapping[str, Mapping[str, Time]], kernel: str) -> tuple[float, float]:
    """Return all layers' milliseconds forward and backward, with torch's own where the kernel has none."""
    chosen = [by.get(kernel, by.get(NATIVE.name, Time())) for by in times.values()]
    return sum(t.forward or 0.0 for t in chosen), sum(t.backward or 0.0 for t in chosen)
