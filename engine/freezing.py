"""What does not train is frozen wholly: no gradients, no updates, and layers that neither learn nor draw."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import nn

from engine.anatomy import Anatomy, WeightLayer, innermost
from engine.layers import stochastic_layers


class Factors(NamedTuple):
    """What multiplies the optimiser's learning rate and weight decay for a parameter; with an lr of 0 it is frozen."""

    lr: float = 1.0
    decay: float = 1.0


def freeze(model: nn.Module, factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """Let those parameters train that have a rate, and return every parameter's factors.

    A parameter that ``factors`` does not name has 1 and 1. A model may have a mapping ``multipliers`` of its own, from
    names to (rate, decay), as Caffe's networks do: they multiply.
    """
    own: Mapping[str, tuple[float, float]] = getattr(model, "multipliers", {})
    whole = {}
    for name, parameter in model.named_parameters():
        given, (lr, decay) = factors.get(name, Factors()), own.get(name, (1.0, 1.0))
        whole[name] = Factors(given.lr * lr, given.decay * decay)
        parameter.requires_grad_(whole[name].lr > 0)
    return whole


def still_layers(model: nn.Module, anatomy: Anatomy, factors: Mapping[str, Factors]) -> list[nn.Module]:
    """Return the layers that stay in evaluation mode while ``factors`` hold, so that what is frozen computes the same.

    They are normalisations that are frozen, or that have no parameters and stand behind a frozen layer, and whatever
    draws before the last layer of the frozen prefix: a dropout behind it belongs to what trains. Layers that are not in
    this process's ``model`` are left out.
    """
    if all(factor.lr > 0 for factor in factors.values()):
        return []
    trains = {name for name, factor in factors.items() if factor.lr > 0}
    here = dict(model.named_modules())
    drawing = {id(layer) for layer in stochastic_layers(model)}
    still = {name for name in frozen_prefix(anatomy, trains) if name in here and id(here[name]) in drawing}
    for layer in anatomy.layers:
        for name in layer.modules:
            own = owned(layer, name)
            if name in here and has_statistics(here[name]) and trains.isdisjoint(own or layer.parameters):
                still.add(name)
    return [here[name] for name in sorted(still)]


def frozen_prefix(anatomy: Anatomy, trains: Collection[str]) -> list[str]:
    """Return the modules that compute before anything that trains, up to the last one with parameters."""
    names: list[str] = []
    frozen: list[str] = []
    for layer in anatomy.layers:
        if not set(trains).isdisjoint(layer.parameters):
            break
        last = max(place for place, name in enumerate(layer.modules) if owned(layer, name))
        frozen = names + list(layer.modules[: last + 1])
        names += layer.modules
    return frozen


def owned(layer: WeightLayer, module: str) -> list[str]:
    """Return those of a layer's parameters that a module computes with itself."""
    return [name for name in layer.parameters if innermost(name, layer.modules) == module]


def has_statistics(module: nn.Module) -> bool:
    """Return whether a module normalises by statistics that it keeps."""
    return getattr(module, "running_mean", None) is not None
