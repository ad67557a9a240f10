"""How layers are made to round what they read and return, by hooks that torch.compile can trace.

Within a compiled model a rounding is one operator, ``engine::round_batch``, which looks up when it runs what step it
is and how to round. So no step, sample or range is part of what was compiled, and none makes it compile anew.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from engine.errors import UsageError
from engine.ops.convolution import library
from engine.quantization.quantizers import Role
from engine.quantization.sites import Moment, Site


class Pass:
    """What is known of the pass under way: when it is, and how many batches each end of a layer has rounded in it."""

    def __init__(self) -> None:
        self.moment = Moment()
        self.rounded: dict[int, int] = {}

    def begin(self, *unused: Any) -> None:
        """Forget the pass before: a hook before and after the whole model."""
        self.rounded.clear()


class End:
    """One end of a layer, its input or output: rounds batches by ``there``, and gradients on the way back by ``back``.

    number: what the compiled operator knows the end by.
    """

    def __init__(self, there: Site | None, back: Site | None, under_way: Pass) -> None:
        self.there, self.back, self.under_way = there, back, under_way
        self.number = next(_numbers)
        _ends[self.number] = self

    def __bool__(self) -> bool:
        return self.there is not None or self.back is not None

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded, its gradient to be rounded; x itself if it is no floating-point tensor."""
        if not x.is_floating_point():
            return x
        compiling = torch.compiler.is_compiling()
        if not compiling and self._is_rounded(x):
            return x
        before = self.under_way.rounded.get(self.number, 0)
        self.under_way.rounded[self.number] = before + 1
        if compiling:
            return torch.ops.engine.round_batch(x, self.number, before, False)
        rounded: Tensor = _Round.apply(x, self, self.under_way.moment, before)
        return rounded

    def _is_rounded(self, x: Tensor) -> bool:
        """Return whether another end has rounded ``x``, and will its gradient, as this one would.

        Its history says so: since then nothing but ReLU, other shapes and maxima of windows that do not overlap, which
        make no new numbers. (Gradients of several readers then are added up before they are rounded.) Compiled code has
        no history, and rounds again, which changes no number that is on the grid.
        """
        node: Any = x.grad_fn
        while node is not None and (kind := node.name()) in CARRIERS:
            strides = node._saved_stride if kind == POOLING else ()  # none: windows side by side
            if strides and any(s < k for s, k in zip(strides, node._saved_kernel_size, strict=True)):
                return False
            node = node.next_functions[0][0]
        if getattr(node, "_forward_cls", None) is not _Round:
            return False
        end: End = node.arguments[0]
        return all(
            ours is not None and theirs is not None and ours.quantizer == theirs.quantizer
            for ours, theirs in ((self.there, end.there), (self.back, end.back))
        )

    def round(self, x: Tensor, moment: Moment, before: int, back: bool) -> Tensor | None:
        """Return a batch, or with ``back`` a gradient, rounded; None where there is nothing to do."""
        site = self.back if back else self.there
        return None if site is None else site.of_samples(x, moment, before)


POOLING = "MaxPool2DWithIndicesBackward0"
CARRIERS = {"ReluBackward0", "ViewBackward0", "UnsafeViewBackward0", "CloneBackward0", "ReshapeAliasBackward0", POOLING}
"""What autograd calls operations after which numbers are still on the grid on which they were."""

_numbers = count()
_ends: WeakValueDictionary[int, End] = WeakValueDictionary()


class _Round(torch.autograd.Function):
    """Rounds a batch on its way forward, and on the way back its gradient, at the same moment."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, end: End, moment: Moment, before: int) -> Tensor:
        """Return the rounded batch."""
        ctx.arguments = end, moment, before
        rounded = end.round(x, moment, before, False)
        return x.clone() if rounded is None else rounded  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the rounded gradient: that of what was rounded stands for that of what came."""
        end, moment, before = ctx.arguments
        rounded = end.round(gradient, moment, before, True)
        return gradient if rounded is None else rounded, None, None, None


def _round_batch(x: Tensor, end: int, before: int, back: bool) -> Tensor:
    found = _ends[end]
    rounded = found.round(x, found.under_way.moment, before, back)
    return x.clone() if rounded is None else rounded


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.arguments = inputs[1:3]


def _round_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    return torch.ops.engine.round_batch(gradient, *ctx.arguments, True), None, None, None


library.define("round_batch(Tensor x, int end, int before, bool back) -> Tensor")
library.impl("round_batch", _round_batch, "CompositeExplicitAutograd")
torch.library.register_fake("engine::round_batch", lambda x, end, before, back: torch.empty_like(x))
torch.library.register_autograd("engine::round_batch", _round_gradient, setup_context=_keep)


class LayerRounding:
    """Rounds what one layer reads and returns, and the gradients of both, while its hooks are on.

    Tensors among the arguments are rounded, positional ones and named ones, and those in a tuple or list that the layer
    returns. What is rounded to the same format already, when gradients are computed, is not rounded again.
    ``find(role, name)`` gives the sites.
    """

    def __init__(self, name: str, find: Callable[[Role, str], Site | None], under_way: Pass) -> None:
        self._name = name
        self._input, self._output = (
            End(find(Role.ACTIVATION, f"{name}.{end}"), find(Role.ACTIVATION_GRADIENT, f"{name}.{end}"), under_way)
            for end in ("input", "output")
        )

    def hook(self, layer: nn.Module) -> list[RemovableHandle]:
        """Begin to round; return what ends it."""
        handles = []
        if self._input:
            handles.append(layer.register_forward_pre_hook(self._before, with_kwargs=True))
        if self._output:
            handles.append(layer.register_forward_hook(self._after))
        return handles

    def _before(
        self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def rounded(value: Any) -> Any:
            return self._input(value) if isinstance(value, Tensor) else value

        return tuple(map(rounded, inputs)), {name: rounded(value) for name, value in named.items()}

    def _after(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        several = type(output) in (tuple, list)
        tensors = list(output) if several else [output]
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise UsageError(
                f"precision: layer '{self._name}' ({type(layer).__name__}) returns a {type(output).__name__}, and only "
                "tensors and flat lists of them can be rounded: choose precision=float32, or another layer"
            )
        rounded = [self._output(tensor) for tensor in tensors]
        return type(output)(rounded) if several else rounded[0]


UNKNOWN = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Transformer)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with parameters of their own, by name. Raises UsageError for a kind that hides its sums."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, UNKNOWN):
            raise UsageError(
                f"precision: layer '{name}' ({type(module).__name__}) computes several things in one, which cannot be "
                "rounded apart: choose precision=float32 or bfloat16"
            )
        if is_parametrized(module):
            raise UsageError(
                f"precision: layer '{name}' ({type(module).__name__}) computes its parameters from others by a "
                "parametrization, which cannot be rounded: choose precision=float32 or bfloat16"
            )
        if next(module.parameters(recurse=False), None) is not None:
            layers[name or type(module).__name__] = module
    return layers
