"""Linear layers that follow each other, with nothing between them but functions of single elements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from .layers import KeyedDropout

DROPOUT = (nn.Dropout, KeyedDropout)
MODULES = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softshrink, nn.Softsign,
    nn.Tanh, nn.Tanhshrink, nn.Threshold, *DROPOUT,
)  # fmt: skip
FUNCTIONS: tuple[Callable[..., Any], ...] = (
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh, functional.elu, functional.gelu, functional.hardswish,
    functional.hardtanh, functional.leaky_relu, functional.mish, functional.relu, functional.relu6, functional.selu,
    functional.sigmoid, functional.silu, functional.softplus, functional.tanh,
)  # fmt: skip
METHODS = ("relu", "relu_", "sigmoid", "tanh")


@dataclass
class Chain:
    """Linear layers by name, the later ones reading what the earlier return, but for functions of single elements.

    dropouts: those of torch between them, by name, each with how many of the layers come before it. gradient: whether
    what the first one reads needs one.
    """

    layers: list[str]
    dropouts: dict[str, int] = field(default_factory=dict)
    gradient: bool = True


class Tracer(fx.Tracer):
    """Looks into modules that have linear layers in them, and into sequences, and into no others."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Return whether a module is taken as a whole."""
        if isinstance(module, nn.Sequential):
            return False
        return isinstance(module, nn.Linear) or not any(isinstance(each, nn.Linear) for each in module.modules())


def trace(model: nn.Module) -> fx.Graph | str:
    """Return the model's graph, or in words why it has none: what a model may do is anything, and so are the errors."""
    try:
        return Tracer().trace(model)
    except Exception as error:
        return " ".join(str(error).split())[:100] or type(error).__name__


def find_chains(model: nn.Module) -> tuple[list[Chain], str]:
    """Return the chains of a model's linear layers, and why they are single layers if the model could not be traced.

    Left out are layers of a class of their own, those whose parameters others share, and those called several times.
    """
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if type(module) is nn.Linear and not _shared(model, module)]
    graph = trace(model)
    if isinstance(graph, str):
        return [Chain([name]) for name in names], graph
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(node.target, []).append(node)
    linear = {calls[name][0]: name for name in names if len(calls.get(name, ())) == 1}
    once = {name for name, nodes in calls.items() if len(nodes) == 1}
    return _chains(modules, linear, once), ""


def _chains(modules: dict[str, nn.Module], linear: dict[fx.Node, str], once: set[str]) -> list[Chain]:
    """Join layers to chains, and add the dropouts before, between and behind them."""
    follows: dict[fx.Node, fx.Node] = {}
    behind: dict[fx.Node, list[str]] = {}
    for node in linear:
        passed, end = _follow(modules, node)
        behind[node] = [name for name in passed if name in once]
        if end in linear:
            follows[node] = end
    found = []
    for node in linear:
        if node in follows.values():
            continue
        chain = Chain([], {name: 0 for name in _before(modules, node) if name in once}, _needs_gradient(modules, node))
        while True:
            chain.layers.append(linear[node])
            chain.dropouts |= {name: len(chain.layers) for name in behind[node]}
            if node not in follows:
                break
            node = follows[node]
        found.append(chain)
    return found


def _follow(modules: dict[str, nn.Module], node: fx.Node) -> tuple[list[str], fx.Node]:
    """Return the dropouts that alone work on what a node returns, up to the first node that is no such function."""
    dropouts = []
    while len(node.users) == 1:
        (node,) = node.users
        if not _elementwise(modules, node):
            break
        if node.op == "call_module" and type(modules[str(node.target)]) in DROPOUT:
            dropouts.append(str(node.target))
    return dropouts, node


def _before(modules: dict[str, nn.Module], node: fx.Node) -> list[str]:
    """Return the dropouts on the way to a node, as far as there are functions of single elements alone."""
    dropouts = []
    while node.args and isinstance(before := node.args[0], fx.Node) and _elementwise(modules, before):
        node = before
        if node.op == "call_module" and type(modules[str(node.target)]) in DROPOUT:
            dropouts.append(str(node.target))
    return dropouts


def _elementwise(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_module":
        return type(modules[str(node.target)]) in MODULES
    return node.target in (FUNCTIONS if node.op == "call_function" else METHODS if node.op == "call_method" else ())


def ancestors(node: fx.Node) -> set[fx.Node]:
    """Return all nodes whose values a node depends on."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        new = [each for each in waiting.pop().all_input_nodes if each not in found]
        found |= {*new}
        waiting += new
    return found


def _needs_gradient(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    earlier = [each for each in ancestors(node) if each.op in ("call_module", "get_attr")]
    return any(
        each.op == "get_attr" or any(p.requires_grad for p in modules[str(each.target)].parameters())
        for each in earlier
    )  # fmt: skip


def _shared(model: nn.Module, layer: nn.Module) -> bool:
    """Return whether another module has one of the layer's parameters too."""
    own = {id(parameter) for parameter in layer.parameters(recurse=False)}
    others = (p for module in model.modules() if module is not layer for p in module.parameters(recurse=False))
    return any(id(parameter) in own for parameter in others)
