"""Cutting a model into stages of about the same cost, wherever one tensor alone leads from what is before to the rest.

The model's graph is torch.fx's; its layers, and so its parameters, are the model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine import UsageError
from engine.cutting import ends_of, graph_of, module_of, steps_of

PASSING = 8  # multiplications that one element of an output counts for, beside those that make it


@dataclass
class Segment:
    """Steps of a graph in a row, behind which one tensor alone is needed; some of them have parameters."""

    nodes: list[fx.Node]
    shape: tuple[int, ...] = ()  # of the tensor behind it, for the images measured with
    cost: float = 0.0  # multiplications of a forward pass, about

    @property
    def name(self) -> str:
        """The last layer of it."""
        return next((str(n.target) for n in reversed(self.nodes) if n.op == "call_module"), self.nodes[-1].name)


class Segments:
    """A model as segments in a row. Raises UsageError if its forward pass cannot be written down as a graph."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._graph = graph_of(model, "parallel=pipeline", "choose another strategy")
        self.parts = self._joined(self._cut())

    def _cut(self) -> list[Segment]:
        """Return the shortest segments."""
        nodes = steps_of(self._graph)
        ends = [end + 1 for end in ends_of(nodes)]
        return [Segment(nodes[begin:end]) for begin, end in pairwise([0, *ends, len(nodes)])]

    def _joined(self, segments: list[Segment]) -> list[Segment]:
        """Return segments that all have parameters, what has none with the one before."""
        joined: list[Segment] = []
        for segment in segments:
            if joined and not (self._trains(segment) and self._trains(joined[-1])):
                joined[-1] = Segment(joined[-1].nodes + segment.nodes)
            else:
                joined.append(segment)
        return joined

    def _trains(self, segment: Segment) -> bool:
        return next(self.module(segment, True, True).parameters(), None) is not None

    def require(self, stages: int) -> None:
        """Raise UsageError if there are fewer segments than stages."""
        if len(self.parts) < stages:
            raise UsageError(
                f"parallel=pipeline: the model can be cut into {len(self.parts)} parts with parameters, which end with "
                f"{', '.join(part.name for part in self.parts)}, not into one for each of {stages} processes: start "
                "fewer"
            )

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Find out the segments' costs, and the shapes between them, with such images; no layer draws or learns."""
        shapes: dict[fx.Node, Any] = {}

        class Shapes(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                result = super().run_node(node)
                shapes[node] = tuple(result.shape) if isinstance(result, Tensor) else ()
                return result

        # A copy, because what rounds in its layers would count this pass, and draw otherwise afterwards.
        model = copy.deepcopy(self._model).eval()
        Shapes(fx.GraphModule(model, self._graph)).run(torch.zeros_like(images))
        for part in self.parts:
            part.shape = shapes[part.nodes[-1]]
            part.cost = sum(self._cost(node, shapes[node]) for node in part.nodes)

    def _cost(self, node: fx.Node, shape: Sequence[int]) -> float:
        """Return about how many multiplications a step takes: of its weights at every place, and for what passes."""
        elements = float(torch.Size(shape).numel()) if shape else 0.0
        weights = 0.0
        if node.op == "call_module":
            layer = self._model.get_submodule(str(node.target))
            weights = sum(p.numel() / p.shape[0] for p in layer.parameters() if p.ndim > 1)  # for one output element
        return elements * (weights + PASSING)

    def stages(self, count: int) -> list[Segment]:
        """Return the segments joined to ``count`` stages, of which the dearest costs as little as can be."""
        costs = [part.cost for part in self.parts]
        ends = balanced(costs, count)
        made = []
        for begin, end in zip([0, *ends], ends, strict=False):
            chosen = self.parts[begin:end]
            nodes = [node for part in chosen for node in part.nodes]
            made.append(Segment(nodes, chosen[-1].shape, sum(part.cost for part in chosen)))
        return made

    def module(self, segment: Segment, first: bool, last: bool) -> fx.GraphModule:
        """Return what computes a segment, of the model's own layers, under their names."""
        return module_of(self._model, segment.nodes)


def balanced(costs: Sequence[float], count: int) -> list[int]:
    """Return where each of ``count`` runs of ``costs`` ends, none empty, the dearest as cheap as can be."""
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    # best[end]: the dearest of the runs so far and where they end, if the last ends there
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for run in range(1, count + 1):
        best = {
            end: min(
                (max(best[begin][0], before[end] - before[begin]), [*best[begin][1], end])
                for begin in range(run - 1, end)
                if begin in best
            )
            for end in range(run, len(costs) - (count - run) + 1)
        }
    return best[len(costs)][1]
