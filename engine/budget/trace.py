"""What each module of a network computes and saves for the backward pass, in the order in which it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(eq=False)
class Call:
    """One call of a module. Ticks count calls that begin or end: what happens between begin and end is inside of it.

    given: the one tensor that it was given, if that was all; made: likewise what it returned. multiply_adds: of
    convolutions and linear layers, of all images; work: these, and one for every value that a layer returns.
    """

    name: str
    module: nn.Module
    begin: int
    end: int = -1
    given: Tensor | None = None
    made: Tensor | None = None
    shape: tuple[int, ...] = ()
    multiply_adds: int = 0
    work: int = 0
    calls: list[Call] = field(default_factory=list)

    def all(self) -> Iterator[Call]:
        """Yield this call and all inside of it, in their order."""
        yield self
        for call in self.calls:
            yield from call.all()


@dataclass
class Saved:
    """A storage that autograd keeps: its bytes, and the ticks at which something saved it."""

    size: int
    ticks: list[int]


@dataclass
class Trace:
    """A forward pass in training. saved: by storage, the images among it; parameters and buffers are not in it.

    operations: ticks at which something was computed. uses: of a tensor that modules passed on, by its id, the ticks at
    which it was computed with, or returned.
    """

    root: Call
    saved: dict[int, Saved]
    images: int  # the images' storage
    operations: list[int]
    uses: dict[int, list[int]]

    @property
    def total(self) -> int:
        """Bytes that are saved by all layers."""
        return sum(saved.size for saved in self.saved.values())

    def counts(self) -> dict[str, int]:
        """Return how many times each module is called, by name."""
        names = [call.name for call in self.root.all()]
        return {name: names.count(name) for name in set(names)}

    def saved_by(self, call: Call) -> int:
        """Return the bytes that a call was the first to save, those of calls inside of it left out."""
        inside = [(inner.begin, inner.end) for inner in call.calls]
        return sum(
            saved.size
            for saved in self.saved.values()
            if call.begin <= saved.ticks[0] < call.end and not any(b <= saved.ticks[0] < e for b, e in inside)
        )


def trace(model: nn.Module, images: Tensor) -> Trace:
    """Return what one forward pass of a model saves; nothing is computed if the tensors have no contents.

    Modules count what they save when they are the first to: a ReLU's output, which the next convolution saves too, is
    the ReLU's. Call it within the numeric policy's forward context.
    """
    watch = _Watch(model, images)
    with watch.hooks(model), watch, watch.saving():
        returned = model(images)
    for tensor in tree_leaves(returned):
        watch.uses.setdefault(id(tensor), []).append(watch.tick)
    assert watch.root is not None, "the model was called"
    return Trace(watch.root, watch.saved, images.untyped_storage()._cdata, watch.operations, watch.uses)


class _Watch(TorchDispatchMode):
    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.tick = 0
        self.root: Call | None = None
        self.saved: dict[int, Saved] = {}
        self.operations: list[int] = []
        self.uses: dict[int, list[int]] = {}
        self._open: list[Call] = []
        own = [*model.parameters(), *model.buffers()]
        self._known = {tensor.untyped_storage()._cdata for tensor in own}
        self._alive: list[Any] = [images, *own]  # so that what is seen later is not at the same place

    def saving(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._alive.append(storage)
            self.saved.setdefault(storage._cdata, Saved(storage.nbytes(), [])).ticks.append(self.tick)
        return tensor

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(self.tick)
        for value in tree_leaves((args, kwargs)):
            if id(value) in self.uses:
                self.uses[id(value)].append(self.tick)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as watches:
            for name, module in model.named_modules():
                begin = module.register_forward_pre_hook(self._begin(name), with_kwargs=True)
                end = module.register_forward_hook(self._end, with_kwargs=True)
                watches.callback(begin.remove)
                watches.callback(end.remove)
            yield

    def _begin(self, name: str) -> Callable[..., None]:
        def begin(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.tick += 1
            call = Call(name, module, self.tick)
            if len(arguments) == 1 and not named and isinstance(arguments[0], Tensor):
                call.given = arguments[0]
                self._alive.append(call.given)
            if self._open:
                self._open[-1].calls.append(call)
            else:
                self.root = call
            self._open.append(call)

        return begin

    def _end(self, module: nn.Module, arguments: Any, named: Any, output: Any) -> None:
        call = self._open.pop()
        self.tick += 1
        call.end = self.tick
        if isinstance(output, Tensor):
            call.made, call.shape = output, tuple(output.shape)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._alive.append(tensor)
                self.uses.setdefault(id(tensor), []).append(self.tick - 1)
        call.multiply_adds = multiply_adds(module, call.made) + sum(inner.multiply_adds for inner in call.calls)
        values = call.made.numel() if call.made is not None and not call.calls else 0
        own = multiply_adds(module, call.made)
        call.work = own + values + sum(inner.work for inner in call.calls)


def multiply_adds(module: nn.Module, made: Tensor | None) -> int:
    """Return the multiply-adds of a convolution or a linear layer that has returned ``made``, else 0.

    Padding counts, biases do not.
    """
    if made is None:
        return 0
    if isinstance(module, nn.Linear):
        return made.numel() * module.in_features
    if isinstance(module, CONVOLUTIONS):
        return made.numel() * prod(module.kernel_size) * module.in_channels // module.groups
    return 0
