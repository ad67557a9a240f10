"""Looking into a network while it computes: behind its modules, or at every depth where one tensor leads on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn

from engine import UsageError
from engine.cutting import ends_of, graph_of, module_of, steps_of
from engine.errors import did_you_mean

CONTAINERS = (nn.Sequential, nn.ModuleList)


def modules_named(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the modules that names or patterns mean, in the model's order. UsageError for one that means none."""
    names = names_of(model)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"layers: no module is called '{pattern}'{did_you_mean(pattern, names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def names_of(model: nn.Module) -> list[str]:
    """Return the names of a model's modules that compute by themselves: a mere list of others has no outputs."""
    return [name for name, module in model.named_modules() if name and type(module).forward is not nn.Module.forward]


class Behind:
    """Gives what modules return, by their names, for images."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model, self.names = model, list(names)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs. Raises UsageError for a module that computes never, or twice, or no tensor."""
        seen: dict[str, Tensor] = {}
        with self._noting(seen):
            self._model(images)
        for name in self.names:
            if name not in seen:
                raise UsageError(f"layers: an evaluation does not reach {name}: leave it out")
        return {name: seen[name] for name in self.names}

    @contextmanager
    def _noting(self, seen: dict[str, Tensor]) -> Iterator[None]:
        def hook_of(name: str) -> Any:
            def note(module: nn.Module, inputs: Any, output: Any) -> None:
                if not isinstance(output, Tensor) or name in seen:
                    fault = "computes more than once" if name in seen else "returns no tensor"
                    raise UsageError(f"layers: {name} {fault}: name a module around it, or within it")
                # A copy, for a layer behind it may compute in place.
                seen[name] = output.clone()

            return note

        handles = [self._model.get_submodule(name).register_forward_hook(hook_of(name)) for name in self.names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class Depth:
    """A place in a network, by the block or layer before it, and the step whose result is looked at."""

    name: str
    end: fx.Node


def depths_of(model: nn.Module, blocks: bool, new: frozenset[str]) -> tuple[fx.Graph, list[Depth]]:
    """Return a network's graph and its depths, the first first: behind each of its blocks, or of its layers.

    A depth is where one tensor alone leads on, behind something with parameters and all without that follows it. With
    ``blocks``, what is in one module that is no mere list is one depth. Parameters that are ``new`` are none that were
    trained, so there the network ends. Raises UsageError for a network that torch.fx cannot trace.
    """
    graph = graph_of(model, "probe", "name the modules to look behind with layers=[...]")
    steps = steps_of(graph)
    bounds = [0, *(end + 1 for end in ends_of(steps)), len(steps)]
    depths: list[Depth] = []
    for begin, end in pairwise(bounds):
        segment = steps[begin:end]
        module = module_of(model, segment)
        own = {name for name, _ in module.named_parameters()}
        if own & new:
            break
        last = segment[-1] if segment[-1].op != "output" else _returned(segment[-1])
        weighted = [str(n.target) for n in segment if n.op == "call_module" and _has_parameters(model, n)]
        name = weighted[-1] if weighted else ""
        name = _block(model, name) if blocks and name else name
        if depths and (not own or name == depths[-1].name):
            depths[-1] = Depth(depths[-1].name, last)
        elif own:
            depths.append(Depth(name or segment[-1].name, last))
    return graph, depths


class AtDepths:
    """Gives what is at the depths of a network, by their names, for images, in one pass."""

    def __init__(self, model: nn.Module, graph: fx.Graph, depths: Sequence[Depth]) -> None:
        self._network = fx.GraphModule(model, graph)
        self._names = {depth.end: depth.name for depth in depths}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the tensors, each before a layer behind it may change it in place."""
        names, seen = self._names, dict[str, Tensor]()

        class Noting(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                result = super().run_node(node)
                if node in names:
                    seen[names[node]] = pooled(result)
                return result

        Noting(self._network, graph=self._network.graph).run(images)
        return seen


def pooled(outputs: Tensor) -> Tensor:
    """Return maps [n, c, h, w] averaged over their pixels, other outputs flattened: [n, features]."""
    return outputs.mean((2, 3)) if outputs.ndim == 4 else outputs.flatten(1).clone()


def _returned(output: fx.Node) -> fx.Node:
    """Return the step that gives a network's outputs: of several the main head, which is the first."""
    given: Any = output.args[0]
    while isinstance(given, list | tuple):
        given = given[0]
    assert isinstance(given, fx.Node), "a network returns what it computes"
    return given


def _has_parameters(model: nn.Module, node: fx.Node) -> bool:
    return next(model.get_submodule(str(node.target)).parameters(), None) is not None


def _block(model: nn.Module, name: str) -> str:
    """Return the outermost module around a layer that is more than a list of others."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        outer = ".".join(parts[:count])
        if not isinstance(model.get_submodule(outer), CONTAINERS):
            return outer
    return name
