"""A network cut where one tensor alone leads from what is before to the rest.

Its forward pass is written down as a graph by torch.fx. The layers of the parts, and so their parameters, are the
network's own, under its names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from engine.errors import UsageError
from engine.freezing import has_statistics
from engine.layers import modes_kept, stochastic_layers


class Layers(fx.Tracer):
    """Takes torch's own modules, and those without any inside, as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one step of the graph."""
        whole = m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
        return whole or next(m.children(), None) is None


def graph_of(model: nn.Module, option: str, remedy: str) -> fx.Graph:
    """Return the steps of a model's forward pass, as its layers' modes have it.

    Raises UsageError, which begins with the ``option`` that asks and ends with the ``remedy``, if they depend on its
    numbers.
    """
    drawn = torch.get_rng_state()
    try:
        graph = Layers().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UsageError(
            f"{option}: {type(model).__name__}'s forward pass depends on its numbers, so it cannot be cut ({reason}): "
            f"{remedy}"
        ) from error
    if not torch.equal(drawn, torch.get_rng_state()):
        raise UsageError(
            f"{option}: {type(model).__name__}'s forward pass draws numbers outside its layers, so it cannot be cut: "
            f"{remedy}"
        )
    return graph


def steps_of(graph: fx.Graph) -> list[fx.Node]:
    """Return what a graph computes, in order: its input, layers and functions, its output; parameters left out."""
    return [node for node in graph.nodes if node.op != "get_attr"]


def ends_of(steps: Sequence[fx.Node]) -> list[int]:
    """Return the numbers of the steps behind which their own result alone is needed; the input is none of them."""
    place = {node: number for number, node in enumerate(steps)}
    last_use = {node: max((place[user] for user in node.users), default=-1) for node in steps}
    ends, latest = [], {}
    for number, node in enumerate(steps[:-1]):
        latest[node] = last_use[node]
        latest = {before: last for before, last in latest.items() if last > number}
        if list(latest) == [node] and node.op != "placeholder":
            ends.append(number)
    return ends


def module_of(model: nn.Module, steps: Sequence[fx.Node]) -> fx.GraphModule:
    """Return what computes steps in a row; whatever they need of those before is given to it."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:
            copies[node] = graph.node_copy(node) if node.op == "get_attr" else graph.placeholder("received")
        return copies[node]

    for node in steps:
        copies[node] = graph.node_copy(node, copy_of)
    if steps[-1].op != "output":
        graph.output(copies[steps[-1]])
    return fx.GraphModule(model, graph)


class Rest(nn.Module):
    """What computes a network from a tensor within it on, in training as in evaluation.

    The tensor may come in another shape and type: it is given those of ``like``, without its first axis.
    """

    def __init__(self, training: fx.GraphModule, evaluation: fx.GraphModule) -> None:
        super().__init__()
        for name, layer in _joined(training, evaluation).named_children():
            self.add_module(name, layer)
        for name, parameter in training.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in training.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self._passes = {True: training, False: evaluation}  # in a dict, so that their layers are not counted again
        self.like: tuple[torch.Size, torch.dtype] | None = None

    def forward(self, received: Tensor) -> object:
        """Return the network's outputs."""
        if self.like is not None:
            received = received.reshape(len(received), *self.like[0]).to(self.like[1])
        return self._passes[self.training](received)


@dataclass(frozen=True)
class Cut:
    """A network in two: ``prefix`` computes nothing that trains, learns or draws; ``last`` is the last layer of it."""

    prefix: fx.GraphModule
    rest: Rest
    last: str


def cut_behind_frozen(model: nn.Module, still: Collection[nn.Module], option: str, remedy: str) -> Cut | None:
    """Return a network cut at the last place before anything that trains or draws; None if nothing frozen is there.

    Frozen are parameters without gradients, and the layers ``still``, which stay in evaluation mode. Where the network
    computes otherwise in training than in an evaluation, an auxiliary head say, it is cut before that. Raises
    UsageError for a network that torch.fx cannot trace, as ``graph_of``.
    """
    with modes_kept(model):
        model.train()
        for layer in still:
            layer.eval()
        training = steps_of(graph_of(model, option, remedy))
        model.eval()
        evaluation = steps_of(graph_of(model, option, remedy))
    quiet = {id(layer) for layer in still}
    common = 0
    for one, other in zip(training, evaluation, strict=False):
        if one.op == "output" or _said(one) != _said(other) or _moves(model, one, quiet):
            break
        common += 1
    ends = [end for end in ends_of(training) if end < common and end in set(ends_of(evaluation))]
    if not ends or next(module_of(model, training[: ends[-1] + 1]).parameters(), None) is None:
        return None
    behind = ends[-1] + 1
    prefix = module_of(model, evaluation[:behind])
    rest = Rest(*(module_of(model, steps[behind:]) for steps in (training, evaluation)))
    last = next((str(n.target) for n in reversed(training[:behind]) if n.op == "call_module"), training[ends[-1]].name)
    return Cut(prefix, rest, last)


def _said(node: fx.Node) -> tuple[object, ...]:
    """Return what a step does, in words that two graphs of a model have in common."""
    return (node.op, node.target, str(node.args), str(node.kwargs))


def _moves(model: nn.Module, node: fx.Node, quiet: Collection[int]) -> bool:
    """Return whether a step trains, learns or draws."""
    for given in node.all_input_nodes:
        if given.op == "get_attr" and _attribute(model, str(given.target)).requires_grad:
            return True
    if node.op != "call_module":
        return False
    layer = model.get_submodule(str(node.target))
    if any(parameter.requires_grad for parameter in layer.parameters()):
        return True
    restless = [*stochastic_layers(layer), *(inner for inner in layer.modules() if has_statistics(inner))]
    return any(id(inner) not in quiet for inner in restless)


def _attribute(model: nn.Module, target: str) -> Tensor:
    path, _, name = target.rpartition(".")
    found: Tensor = getattr(model.get_submodule(path), name)
    return found


def _joined(one: fx.GraphModule, other: fx.GraphModule) -> fx.GraphModule:
    """Return the first with the layers that only the second has."""
    there = {str(node.target) for node in one.graph.nodes if node.op == "call_module"}
    for target in _called(other):
        if target not in there:
            one.add_submodule(target, other.get_submodule(target))
    return one


def _called(module: fx.GraphModule) -> Iterator[str]:
    return (str(node.target) for node in module.graph.nodes if node.op == "call_module")
