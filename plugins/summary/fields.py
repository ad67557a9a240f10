"""Receptive fields: which pixels of the image a unit sees.

The arithmetic of Araujo, Norris and Sim 2019 ("Computing receptive fields of convolutional neural networks"), over the
graph that torch.fx traces. Along a side, a unit of a layer sees ``size`` pixels, the first unit from pixel ``start`` on
(below 0: padding), the next one ``stride`` pixels further; a layer of kernel k, stride s, padding p, dilation d has

    size + (d (k - 1)) stride,   stride s,   start - p stride

where branches meet, a unit sees what it sees by any of them: from the least start to the largest end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from engine.layers import StochasticDepth
from engine.normalization import LocalResponseNorm

Pair = tuple[int, int]


@dataclass(frozen=True)
class Field:
    """What a unit sees, by height and width."""

    size: Pair = (1, 1)
    stride: Pair = (1, 1)
    start: Pair = (0, 0)

    def through(self, kernel: Pair, stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1)) -> Field:
        """Return the field of a unit of a layer that is given units with this one."""
        sides = range(2)
        return Field(
            _pair(self.size[i] + dilation[i] * (kernel[i] - 1) * self.stride[i] for i in sides),
            _pair(self.stride[i] * stride[i] for i in sides),
            _pair(self.start[i] - padding[i] * self.stride[i] for i in sides),
        )

    def or_by(self, other: Field) -> Field:
        """Return what is seen by either of two ways; the coarser stride counts."""
        start = _pair(min(a, b) for a, b in zip(self.start, other.start, strict=True))
        ends = [max(a + s, b + t) for a, s, b, t in zip(self.start, self.size, other.start, other.size, strict=True)]
        stride = _pair(max(a, b) for a, b in zip(self.stride, other.stride, strict=True))
        return Field(_pair(end - first for end, first in zip(ends, start, strict=True)), stride, start)


def _pair(values: Any) -> Pair:
    first, second = (values, values) if isinstance(values, int) else values
    return int(first), int(second)


POINTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.ReLU6, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.Softmax,
    nn.BatchNorm2d, nn.BatchNorm1d, nn.GroupNorm, nn.LayerNorm, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity,
    nn.LocalResponseNorm, nn.Linear, nn.Unflatten, LocalResponseNorm, StochasticDepth,
)  # fmt: skip
"""Layers whose units see one place of what they are given; normalisations' statistics do not count."""

BY_PLACE = {
    "add", "sub", "mul", "div", "truediv", "iadd", "imul", "pow", "neg", "square", "sqrt", "rsqrt", "abs", "exp", "log",
    "relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh", "softmax", "log_softmax", "clamp",
    "dropout", "batch_norm", "local_response_norm", "cat", "concat", "stack", "chunk", "split", "contiguous", "to",
    "float", "clone", "detach", "linear", "view", "reshape", "squeeze", "unsqueeze", "add_", "mul_", "maximum", "lrn",
}  # fmt: skip
"""Functions and methods by name, of which the same holds."""


class _Tracer(fx.Tracer):
    """Traces into every module but those that the arithmetic knows, and those that cannot be traced."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, POINTWISE) or super().is_leaf_module(module, name)

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        before = len(self.graph.nodes)
        try:
            return super().call_module(module, forward, args, kwargs)
        except (fx.proxy.TraceError, TypeError, RuntimeError):  # what its code does depends on numbers
            for node in list(self.graph.nodes)[: before - 1 : -1]:
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)


@dataclass(frozen=True)
class Fields:
    """by_module: of a module's output, where it is known. last: before global pooling and linear layers. gaps: why not.

    A module that is called several times has the largest.
    """

    by_module: Mapping[str, Field]
    last: Field | None
    gaps: tuple[str, ...] = ()


def fields_of(model: nn.Module, images: Tensor) -> Fields:
    """Return the receptive fields of a model's modules, for images of that shape; nothing that cannot be traced.

    Call it where tensors have no contents, or little: the traced graph runs once.
    """
    try:
        graph = fx.GraphModule(model, _Tracer().trace(model))
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        return Fields({}, None, (f"the model cannot be traced by torch.fx: {reason}",))
    walk = _Walk(graph)
    walk.run(images)
    return Fields(walk.by_module, walk.last(), tuple(dict.fromkeys(walk.gaps)))


class _Walk(fx.Interpreter):
    """Runs a graph and carries fields along."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self._graph = graph.graph
        self._modules = dict(graph.named_modules())
        self.fields: dict[fx.Node, Field] = {}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.by_module: dict[str, Field] = {}
        self.gaps: list[str] = []

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if isinstance(made, Tensor):
            self.shapes[n] = tuple(made.shape)
        elif isinstance(made, list | tuple) and made and isinstance(made[0], Tensor):
            self.shapes[n] = tuple(made[0].shape)
        else:
            return made
        field = Field() if n.op == "placeholder" else self._field(n)
        if field is not None:
            self.fields[n] = field
            if n.op == "call_module":
                known = self.by_module.get(str(n.target))
                self.by_module[str(n.target)] = field.or_by(known) if known else field
        return made

    def last(self) -> Field | None:
        """Return the field before global pooling and linear layers, on the way to the main output."""
        output = next(node for node in self._graph.nodes if node.op == "output")
        made = output.args[0]
        node = made[0] if isinstance(made, list | tuple) else made
        way: list[fx.Node] = []
        while isinstance(node, fx.Node):
            way.append(node)
            node = next(iter(node.all_input_nodes), None)
        pooling = next((place + 1 for place, node in enumerate(way) if self._pools_all(node)), 0)
        maps = (node for node in way[pooling:] if len(self.shapes.get(node, ())) == 4)
        return self.fields.get(next(maps, output))

    def _pools_all(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._module(node), nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
        return _name(node) in ("mean", "adaptive_avg_pool2d", "adaptive_max_pool2d")

    def _module(self, node: fx.Node) -> nn.Module:
        return self._modules[str(node.target)]

    def _field(self, node: fx.Node) -> Field | None:
        """Return a node's field; None if it is not known, with the reason noted where the gap begins."""
        sources = [source for source in node.all_input_nodes if source in self.shapes]
        if node.op in ("get_attr", "output") or not sources:
            return None
        known = [self.fields[source] for source in sources if source in self.fields]
        if not known or any(s not in self.fields for s in sources if len(self.shapes[s]) == 4):
            return None
        seen = known[0]
        for other in known[1:]:
            seen = seen.or_by(other)
        place = self.shapes[sources[0]][2:]
        rule = self._by_module if node.op == "call_module" else self._by_function
        found = rule(node, seen, _pair(place) if len(place) == 2 else (1, 1))
        if found is None:
            what = type(self._module(node)).__name__ if node.op == "call_module" else f"the function {_name(node)}"
            self.gaps.append(f"not known from {node.target if node.op == 'call_module' else node.name} on: {what}")
        return found

    def _by_module(self, node: fx.Node, seen: Field, place: Pair) -> Field | None:
        module = self._module(node)
        if isinstance(module, nn.Conv2d):
            padding = (0, 0) if isinstance(module.padding, str) else module.padding
            if module.padding == "same":
                padding = _pair(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
            return seen.through(module.kernel_size, module.stride, _pair(padding), module.dilation)  # type: ignore[arg-type]
        if isinstance(module, nn.MaxPool2d):
            settings = (module.kernel_size, module.stride, module.padding, module.dilation)
            return seen.through(*(_pair(each) for each in settings))
        if isinstance(module, nn.AvgPool2d):
            return seen.through(_pair(module.kernel_size), _pair(module.stride), _pair(module.padding))
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            return _adaptive(seen, place, self.shapes[node])
        if isinstance(module, nn.Flatten):
            return _whole(seen, place)
        return seen if isinstance(module, POINTWISE) else None

    def _by_function(self, node: fx.Node, seen: Field, place: Pair) -> Field | None:
        name, shape = _name(node), self.shapes[node]
        if name in ("max_pool2d", "avg_pool2d", "conv2d"):
            return _windows(node, name, seen, self.shapes)
        if name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
            return _adaptive(seen, place, shape)
        if name in ("mean", "amax", "sum", "flatten", "view", "reshape") and len(shape) < 4:
            return _whole(seen, place)
        if name in ("mean", "amax") and shape[2:] == (1, 1):
            return _whole(seen, place)
        if name == "getitem":
            return _sliced(node.args[1], seen)
        if name == "pad":
            return _padded(node, seen)
        return seen if name in BY_PLACE or name == "_by_kernel" else None


def _name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    name = getattr(node.target, "__name__", str(node.target))
    return "getitem" if node.target is operator.getitem else name.rpartition(".")[2]


def _whole(seen: Field, place: Pair) -> Field:
    """Return the field of what looks at all of a map of so many places."""
    return replace(seen.through(place), stride=_pair(p * s for p, s in zip(place, seen.stride, strict=True)))


def _adaptive(seen: Field, place: Pair, shape: tuple[int, ...]) -> Field:
    """Return the field of the largest window of a pooling that makes a map of ``shape`` of one of ``place``."""
    made = _pair(shape[2:])
    kernel = _pair(p // m if p % m == 0 else p // m + 2 for p, m in zip(place, made, strict=True))
    kernel = _pair(min(k, p) for k, p in zip(kernel, place, strict=True))
    return seen.through(kernel, _pair(max(p // m, 1) for p, m in zip(place, made, strict=True)))


def _windows(node: fx.Node, name: str, seen: Field, shapes: Mapping[fx.Node, tuple[int, ...]]) -> Field:
    """Return the field behind a function that looks through windows."""
    given: dict[str, Any] = dict(node.kwargs)
    if name == "conv2d":
        order: tuple[str, ...] = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given |= dict(zip(order, node.args, strict=False))
        kernel = shapes[given["weight"]][2:]
        default: Any = 1
    else:
        order = ("input", "kernel_size", "stride", "padding", "dilation" if name == "max_pool2d" else "ceil_mode")
        given |= dict(zip(order, node.args, strict=False))
        kernel = default = given["kernel_size"]
    stride = given.get("stride") or default
    dilation = given.get("dilation", 1)
    return seen.through(_pair(kernel), _pair(stride), _pair(given.get("padding", 0)), _pair(dilation))


def _sliced(index: Any, seen: Field) -> Field:
    """Return the field of maps of which ``index`` takes some rows and columns."""
    if not isinstance(index, tuple) or len(index) != 4:
        return seen
    steps = [each.step or 1 if isinstance(each, slice) else 1 for each in index[2:]]
    first = [(each.start or 0) if isinstance(each, slice) else 0 for each in index[2:]]
    return seen.through((1, 1), _pair(steps), _pair(-each for each in first))


def _padded(node: fx.Node, seen: Field) -> Field:
    widths = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    columns, rows = ([*widths, 0, 0, 0][place] for place in (0, 2))  # type: ignore[misc]
    return seen.through((1, 1), padding=(rows, columns))
