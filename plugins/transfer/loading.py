"""Putting somebody's weights into a model: by name, else by order; what does not fit is new, or is answered."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from engine import UsageError
from engine.anatomy import Anatomy

from .weights import Given

COUNTER = "num_batches_tracked"  # of BatchNorm; weights from before PyTorch 0.4.1 lack it, and nothing computes with it
Modules = dict[str, dict[str, Tensor]]  # a state by module, and by the name that a tensor has there


@torch.no_grad()
def take(
    model: nn.Module, anatomy: Anatomy, given: Given, taking_none: Collection[str]
) -> tuple[frozenset[str], list[str]]:
    """Copy what fits into the model; return which parameters are new, and lines that tell all of it.

    New is what ``taking_none`` names, what the weights lack, and a head for another number of classes. Nothing is
    copied where a UsageError is raised: for weights that have less than half of the model's layers by name, and other
    layers in their order, and for layers of another shape.
    """
    own = by_module(model.state_dict())
    theirs, lines = _matched(own, anatomy, given)
    new: dict[str, list[str]] = {"asked": [], "head": [], "missing": []}
    faults, taken = [], []
    for module, tensors in own.items():
        there = theirs.get(module, {})
        if any(_joined(module, name) in taking_none for name in tensors):
            new["asked"].append(module)
        elif not there:
            new["missing"].append(module)
        elif of_other_classes(module, tensors, there, anatomy):
            new["head"].append(module)
        elif found := _faults(module, tensors, there):
            faults += found
        else:
            taken.append(module)
    if faults:
        raise UsageError(
            f"{given.origin} does not fit this model: {some(faults)}; choose the model that the weights are of, or "
            "transfer.reinitialize=[LAYER] to train such layers anew"
        )
    if not taken:
        raise UsageError(f"{given.origin}: no layer takes its weights; transfer.reinitialize must leave some")
    for module in taken:
        for name, tensor in own[module].items():
            if name in theirs[module]:
                tensor.copy_(theirs[module][name])
    fresh = frozenset(_joined(module, name) for module in chain(*new.values()) for name in own[module])
    lines += _told(model, anatomy, given, own, theirs, new, taken)
    return fresh & {name for name, _ in model.named_parameters()}, lines


def by_module(state: Mapping[str, Tensor]) -> Modules:
    """Return a state's tensors by module, in their order."""
    modules: Modules = {}
    for name, tensor in state.items():
        module, _, own = name.rpartition(".")
        modules.setdefault(module, {})[own] = tensor
    return modules


def of_other_classes(module: str, tensors: Mapping[str, Tensor], there: Mapping[str, Tensor], anatomy: Anatomy) -> bool:
    """Return whether a module is of the head, and the weights have it for another number of outputs, alone."""
    if anatomy.head.isdisjoint(_joined(module, name) for name in tensors) or _names(tensors) != _names(there):
        return False
    unlike = [name for name in _names(tensors) if there[name].shape != tensors[name].shape]
    return bool(unlike) and all(
        there[name].ndim == tensors[name].ndim and there[name].shape[1:] == tensors[name].shape[1:] for name in unlike
    )


def _faults(module: str, tensors: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> list[str]:
    """Return what of a module the weights have in another shape, or lack."""
    faults = []
    for name in sorted(_names(tensors)):
        if name not in there:
            faults.append(f"{_joined(module, name)} is missing")
        elif there[name].shape != tensors[name].shape:
            shapes = f"{list(there[name].shape)} instead of {list(tensors[name].shape)}"
            faults.append(f"{_joined(module, name)} is {shapes}")
    return faults


def _matched(own: Modules, anatomy: Anatomy, given: Given) -> tuple[Modules, list[str]]:
    """Return the weights by the model's modules, and a line if less than half of the layers were called so."""
    theirs, layers = by_module(given.state), [layer.name for layer in anatomy.layers]
    found = [layer for layer in layers if layer in theirs]
    if 2 * len(found) >= len(layers):
        return theirs, []
    renamed = _by_order(own, theirs, anatomy) if given.ordered else None
    if renamed is None:
        few = (
            f"{len(found)} of this model's {len(layers)} layers by name" if found else "no layer that is called as here"
        )
        order = "nor layers of the same shapes in this order" if given.ordered else "and its file keeps no order"
        raise UsageError(
            f"{given.origin} has {few} (there {some(list(theirs), 2)}; here {some(layers, 2)}), {order}: choose the "
            "model that the weights are of"
        )
    first, last = renamed[layers[0]], renamed[layers[-1]]
    ends = f"{layers[0]} takes {first}, ... {layers[-1]} takes {last}"
    line = f"{given.origin} calls its layers otherwise, but they have these shapes in this order: {ends}"
    return {module: theirs[name] for module, name in renamed.items()}, [line]


def _by_order(own: Modules, theirs: Modules, anatomy: Anatomy) -> dict[str, str] | None:
    """Return which of their modules each of the model's is, in execution order; None if their shapes differ.

    Layers with filters or matrices are counted apart from those with vectors alone, which some networks list at the
    end.
    """
    executed = [name for layer in anatomy.layers for name in layer.modules if name in own]
    if set(executed) != set(own):
        return None
    renamed = {}
    for heavy in (True, False):
        here = [name for name in executed if _heavy(own[name]) == heavy]
        there = [name for name, tensors in theirs.items() if _heavy(tensors) == heavy]
        if len(here) != len(there):
            return None
        for module, name in zip(here, there, strict=True):
            same = not _faults(module, own[module], theirs[name]) and _names(own[module]) == _names(theirs[name])
            if not same and not of_other_classes(module, own[module], theirs[name], anatomy):
                return None
            renamed[module] = name
    return renamed


def _told(
    model: nn.Module,
    anatomy: Anatomy,
    given: Given,
    own: Modules,
    theirs: Modules,
    new: Mapping[str, Sequence[str]],
    taken: Sequence[str],
) -> list[str]:
    layers = {layer.name for layer in anatomy.layers}
    lines = [f"{len(layers.intersection(taken))} of {len(layers)} layers have the weights of {given.origin}"]
    for module in new["head"]:
        there, here = (next(iter(t[module].values())).shape[0] for t in (theirs, own))
        named = f" ({some(given.classes, 3)})" if len(given.classes) == there else ""
        lines.append(f"the head {module} is new: it has {here} outputs here, {there} in the weights{named}")
    learns = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    if fresh := _called(own, [module for module in new["missing"] if module in learns]):
        lines.append(f"new, as the weights have nothing for them: {some(fresh)}")
    if kept := [_joined(m, name) for m in new["missing"] if m not in learns for name in own[m] if name != COUNTER]:
        lines.append(f"not learnt, and as the model has them, as the weights lack them: {some(kept)}")
    if new["asked"]:
        lines.append(f"new, as transfer.reinitialize says: {some(_called(own, new['asked']))}")
    head = {name.rpartition(".")[0] for name in anatomy.head}
    if fits := sorted(head.intersection(taken)):
        named = f" for {some(given.classes, 3)}" if given.classes else ""
        lines.append(
            f"the head {some(fits)} fits{named} and is kept; transfer.reinitialize=[{','.join(fits)}] starts it anew"
        )
    if unknown := [_joined(m, name) for m, tensors in theirs.items() for name in tensors if name not in own.get(m, {})]:
        given.unused.update(unknown)
        lines.append(f"not used of the weights: {some(unknown)}")
    return lines


def _called(own: Modules, modules: Sequence[str]) -> list[str]:
    """Return what modules are called; of what the model has itself, outside of layers, what each tensor is."""
    return [name for module in modules for name in ([module] if module else own[module])]


def _names(tensors: Iterable[str]) -> set[str]:
    return {name for name in tensors if name != COUNTER}


def _heavy(tensors: Mapping[str, Tensor]) -> bool:
    return any(tensor.ndim > 1 for tensor in tensors.values())


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def some(names: Sequence[str], most: int = 4) -> str:
    """Return the first of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
