"""Which ReLU layers may overwrite their input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.budget.foresight import Foresight
from engine.precision import widened


def inplace_layers(foresight: Foresight, batch: int) -> tuple[str, ...]:
    """Return the names of the ReLU layers whose input nothing looks at once they have computed.

    Neither another layer, which would see the ReLU's output instead, nor a gradient, whose layer has saved its own
    output (as a sigmoid does). A whole step is followed, forward and backward.
    """
    with foresight.imagined():
        images, targets = foresight.images(batch), foresight.targets(batch)
        own = [images, *foresight.model.parameters(), *foresight.model.buffers()]
        watch = _Watch({_key(tensor) for tensor in own})
        with watch.hooks(foresight.model), watch:
            with foresight.precision.forward():
                made = widened(foresight.model(images))
            foresight.loss(made, targets).backward()
        for parameter in foresight.model.parameters():
            parameter.grad = None
    return tuple(name for name in watch.names if name not in watch.looked_at)


class _Watch(TorchDispatchMode):
    """Notes which inputs of ReLU layers an operation takes after the layer, by their storage."""

    def __init__(self, taken: set[int]) -> None:
        super().__init__()
        self.names: dict[str, None] = {}
        self.looked_at: set[str] = set()
        self._taken = taken  # storages that are not to be changed
        self._inputs: dict[int, str] = {}
        self._alive: list[Any] = []  # so that no other tensor is at the place of one that was seen

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and (name := self._inputs.get(_key(value))):
                self.looked_at.add(name)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as watches:
            for name, module in model.named_modules():
                if type(module) is nn.ReLU and not module.inplace:
                    watches.callback(module.register_forward_hook(self._after(name)).remove)
            yield

    def _after(self, name: str) -> Callable[..., None]:
        def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            given = arguments[0]
            key = _key(given)
            if key in self._taken or key in self._inputs or (given.requires_grad and given.is_leaf):
                self.looked_at.add(name)
            self.names[name] = None
            self._alive.append(given)
            self._inputs[key] = name

        return after


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
