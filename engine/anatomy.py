"""What a network is made of, seen from outside: its layers in the order in which they compute, and which are its head.

Transfer learning needs to know both of any network, whatever its author calls its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from engine.errors import UsageError
from engine.layers import modes_kept


@dataclass(frozen=True)
class WeightLayer:
    """A layer with filters or a matrix, and what computes behind it up to the next such layer.

    name: the module's. parameters: names of its own, and of the normalisations and slopes behind it. modules: names of
    those that compute, in their order, itself first; those before the network's first layer are before it in its list.
    A parameter of a module that nobody calls is of the nearest module around it that is: attention computes with its
    output's matrix itself.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]


class Anatomy:
    """A network's layers and head, found when asked for, on torch's meta device: no memory, no arithmetic.

    build: makes the network for a number of outputs. shape: (channels, height, width) of its images.
    """

    def __init__(self, build: Callable[[int], nn.Module], outputs: int, shape: Sequence[int]) -> None:
        self._build, self._outputs, self._shape = build, outputs, tuple(shape)

    @cached_property
    def layers(self) -> tuple[WeightLayer, ...]:
        """The layers in the order in which they first compute. Raises UsageError for a network without any.

        A layer is a module that has, of its own, a parameter of two axes or more.
        """
        model = self._made(self._outputs)
        called = self._calls(model)
        owners = _owners(model, called)
        calls = [name for name in called if name in owners or next(model.get_submodule(name).children(), None) is None]
        starts = [place for place, name in enumerate(calls) if _has_weights(model, owners.get(name, []))]
        if not starts:
            raise UsageError("the model has no layer with filters or a matrix: there is nothing to transfer")
        bounds = [0, *starts[1:], len(calls)]
        pieces = [calls[begin:end] for begin, end in pairwise(bounds)]
        return tuple(
            WeightLayer(calls[start], tuple(n for name in piece for n in owners.get(name, [])), tuple(piece))
            for start, piece in zip(starts, pieces, strict=True)
        )

    @cached_property
    def head(self) -> frozenset[str]:
        """Names of the parameters whose shape depends on the number of outputs: of auxiliary heads, too.

        Raises UsageError for a network that has the same shapes for any number.
        """
        one, other = (dict(self._made(self._outputs + more).named_parameters()) for more in (0, 1))
        head = frozenset(n for n, p in one.items() if n not in other or other[n].shape != p.shape)
        if not head:
            raise UsageError("the model has the same parameters for any number of classes, so it has no head to train")
        return head

    @cached_property
    def auxiliary(self) -> frozenset[str]:
        """Names of the layers that compute in training alone: those of auxiliary heads."""
        trained, evaluated = (set(self._calls(self._made(self._outputs), mode)) for mode in (True, False))
        return frozenset(layer.name for layer in self.layers if layer.name in trained - evaluated)

    def is_head(self, layer: WeightLayer) -> bool:
        """Return whether a layer is of the head."""
        return not self.head.isdisjoint(layer.parameters)

    def _made(self, outputs: int) -> nn.Module:
        with _explained("built"), torch.device("meta"):
            return self._build(outputs)

    @torch.no_grad()
    def _calls(self, model: nn.Module, training: bool = True) -> list[str]:
        """Return the names of the modules, as they first compute."""
        names: dict[str, None] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any) -> None:
                names.setdefault(name)

            return hook

        for name, module in model.named_modules():
            module.register_forward_pre_hook(note(name))
        with modes_kept(model):
            model.train(training)
            with _explained("passed through"):
                model(torch.empty(2, *self._shape, device="meta"))
        return list(names)


@contextmanager
def _explained(done: str) -> Iterator[None]:
    """Within ``with``, what torch raises for a model that asks for numbers becomes a UsageError."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UsageError(
            f"the model cannot be {done} without its numbers, on torch's meta device, so its layers are not known to "
            f"transfer: {reason}"
        ) from error


def innermost(name: str, modules: Collection[str]) -> str:
    """Return which of some modules is the innermost around a parameter, or a module; "" is the network itself."""
    while name:
        name = name.rpartition(".")[0]
        if name in modules:
            break
    return name


def _owners(model: nn.Module, called: Collection[str]) -> dict[str, list[str]]:
    """Return the names of the parameters by the module that computes with them."""
    owners: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        owners.setdefault(innermost(name, called), []).append(name)
    return owners


def _has_weights(model: nn.Module, parameters: Sequence[str]) -> bool:
    return any(model.get_parameter(name).ndim > 1 for name in parameters)
