"""Checkpointing (Chen et al. 2016, "Training deep nets with sublinear memory cost") without another network.

Some modules in a row, each of which is given what the one before returned, become a segment: nothing that they compute
is kept for the backward pass, which computes it again from what the first was given. Modules and parameters keep their
names; what changes is their ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.layers import stochastic_layers


class Segment:
    """Lets ``modules`` compute as one that is checkpointed: all but the last return what they are given.

    That holds where gradients are computed and nobody watches one of the modules by a hook; elsewhere they compute as
    ever. Results are the same, bit for bit: what is drawn is drawn again alike, and buffers (BatchNorm's statistics)
    have after the second computation what they had before it. Not for modules that are called more than once a pass.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self._draws = any(stochastic_layers(module) for module in modules)
        self._forwards: list[Callable[..., Any]] = []
        self._next = 0  # the module that goes on with a pass that is checkpointed

    def install(self) -> None:
        """Take the modules' ``forward`` over."""
        self._forwards = [module.forward for module in self.modules]
        for number, module in enumerate(self.modules):
            last = number == len(self.modules) - 1
            module.forward = Part(self, number, last)

    def imagine(self) -> None:
        """Do so for tensors without contents, whose generators draw nothing that could be drawn again."""
        self._draws = False
        self.install()

    def remove(self) -> None:
        """Give the modules back what they had."""
        for module in self.modules:
            del module.forward

    def call(self, number: int, last: bool, given: Tensor) -> Any:
        """Return what module ``number`` does with what it was given."""
        checkpointed = number == self._next
        if number == 0:
            checkpointed = torch.is_grad_enabled() and not any(_watched(module) for module in self.modules)
        self._next = number + 1 if checkpointed and not last else 0
        if not checkpointed:  # also where a pass begins behind the first module
            return self._forwards[number](given)
        if not last:
            return given
        return checkpoint(
            self._run, given, use_reentrant=False, preserve_rng_state=self._draws, context_fn=self._contexts
        )

    def _run(self, given: Tensor) -> Any:
        for forward in self._forwards:
            given = forward(given)
        return given

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), self._buffers_kept()

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        buffers = [buffer for module in self.modules for buffer in module.buffers()]
        kept = [buffer.detach().clone() for buffer in buffers]
        try:
            yield
        finally:
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.data.copy_(value)  # by data: autograd need not know, as it does not know of the first update


class Part:
    """What a module of a segment computes with."""

    def __init__(self, segment: Segment, number: int, last: bool) -> None:
        self.segment, self.number, self.last = segment, number, last

    def __call__(self, given: Tensor) -> Any:
        """Return what the module makes, or leaves to the segment's last one."""
        return self.segment.call(self.number, self.last, given)


def _watched(module: nn.Module) -> bool:
    return any(
        inner._forward_hooks or inner._forward_pre_hooks or inner._backward_hooks or inner._backward_pre_hooks
        for inner in module.modules()
    )
