"""A network as a prototxt describes it, as a module: layers under Caffe's names, blobs bound by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .graph import Graph
from .layer import MOST_WEIGHTS, Layer, Made, Shape
from .naming import DEEPEST, path_of
from .prototxt import Mistake
from .simple import MAKERS


@dataclass(frozen=True)
class Step:
    """One layer's work. path: its module, "" where tops are bottoms. done: blobs that nothing needs after it."""

    path: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    flat: bool
    done: tuple[str, ...]


class Network(nn.Module):
    """What a graph computes of images [n, channels, height, width]: [n, outputs], or several, the main head first.

    Layers that a head depends on are modules under their names ("/" is "."), so that LAYER.weight is a parameter. The
    last layer with weights before each head gets ``outputs`` of them, whatever the prototxt says; None: as many as that
    says, which ``outputs`` then is. ``multipliers`` are
    lr_mult and decay_mult of the parameters by name, ``blobs`` the parameters of each layer in the order of Caffe's.
    mean: what is subtracted from every image first, of its shape; it is among the network's weights.
    Raises Mistake for layers that do not fit the images or each other.
    """

    def __init__(
        self, graph: Graph, inputs: tuple[int, int, int], outputs: int | None, mean: Tensor | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("mean_image", mean)
        self.multipliers: dict[str, tuple[float, float]] = {}
        self.blobs: dict[str, tuple[str, ...]] = {}
        self._image, self._heads = graph.image, tuple(graph.heads)
        shapes: dict[str, Shape] = {graph.image: tuple(inputs)}
        steps, weights = [], 0
        for place, layer in enumerate(graph.layers):
            made = self._made(graph, layer, [shapes[bottom] for bottom in layer.bottoms], outputs)
            path = self._add(layer, made) if made.module is not None else ""
            weights += sum(self.get_parameter(name).numel() for name in self.blobs.get(layer.name, ()) if name)
            if weights > 2 * MOST_WEIGHTS:
                raise layer.mistake(f"with it, the network has {weights:,} weights: the limit is {2 * MOST_WEIGHTS:,}")
            shapes |= dict(zip(layer.tops, made.shapes, strict=True))
            later = {blob for other in graph.layers[place + 1 :] for blob in other.bottoms}
            done = tuple({*layer.bottoms, *layer.tops} - later - set(self._heads))
            steps.append(Step(path, layer.bottoms, layer.tops, made.flat, done))
        self._steps = tuple(steps)
        self.outputs = outputs or shapes[graph.heads[0]][0]
        self._require_heads(graph, shapes, self.outputs)

    mean_image: Tensor | None

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Return the scores of the main head, or of all."""
        blobs = {self._image: images if self.mean_image is None else images - self.mean_image}
        for step in self._steps:
            given = [blobs[bottom] for bottom in step.bottoms]
            if not step.path:
                made: Sequence[Tensor] = given * len(step.tops)
            else:
                given = [given[0].flatten(1)] if step.flat else given
                result = self.get_submodule(step.path)(*given)
                made = [result] if len(step.tops) == 1 else result
            for place, top in enumerate(step.tops):
                blobs[top] = made[place]
            for blob in step.done:
                blobs.pop(blob, None)
        heads = [blobs[head].flatten(1) for head in self._heads]
        return heads[0] if len(heads) == 1 else heads

    def _made(self, graph: Graph, layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
        if len(set(layer.tops)) != len(layer.tops):
            raise layer.mistake("two of its tops have one name")
        made = MAKERS[layer.type](layer, shapes, outputs if any(layer is c for c in graph.classifiers) else None)
        if len(made.shapes) != len(layer.tops):
            raise layer.mistake(f"it has {len(layer.tops)} tops instead of {len(made.shapes)}")
        return made

    def _add(self, layer: Layer, made: Made) -> str:
        """Put a layer's module under its name and take note of its parameters; return its path."""
        assert made.module is not None
        path = self._free(layer, any(True for _ in made.module.state_dict()))
        parent: nn.Module = self
        *above, last = path.split(".")
        for part in above:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        group = parent._modules.pop(last, None)  # of layers whose names begin with this one's
        for name, child in group.named_children() if group else ():
            if hasattr(made.module, name):
                raise layer.mistake(f"another layer is called '{layer.name[:40]}/{name[:40]}', which torch uses itself")
            made.module.add_module(name, child)
        parent.add_module(last, made.module)
        self.blobs[layer.name] = tuple(f"{path}.{name}" if name else "" for name in made.parameters)
        for place, name in enumerate(made.parameters):
            multipliers = layer.multipliers(place)
            if min(multipliers) < 0:
                raise layer.mistake("lr_mult and decay_mult must be at least 0")
            if name:
                self.multipliers[f"{path}.{name}"] = multipliers
        return path

    def _free(self, layer: Layer, weighted: bool) -> str:
        """Return a path where no other layer is: without weights, another number may be added to the name."""
        whole = path = path_of(layer.name or layer.type)
        number, parts = 1, path.count(".") + 1
        if parts > DEEPEST:
            raise layer.mistake(f"its name has {parts} parts between slashes and dots: the limit is {DEEPEST}")
        if not weighted:
            while self._taken(path):
                number += 1
                path = f"{whole.replace('.', '_')}_{number}"
        if weighted and (not layer.name or self._taken(path)):
            raise layer.mistake("it has weights, so it needs a name that no other layer has")
        return path

    def _taken(self, path: str) -> bool:
        """Return whether a path is that of a layer, or of something that torch's modules have themselves."""
        parent: nn.Module = self
        for part in path.split("."):
            if part not in parent._modules:
                return hasattr(parent, part)
            parent = parent.get_submodule(part)
        return type(parent) is not nn.Module  # a mere group may still become a layer

    def _require_heads(self, graph: Graph, shapes: dict[str, Shape], outputs: int) -> None:
        for head in graph.heads:
            shape = shapes[head]
            if len(shape) > 1 and max(shape[1:]) > 1:
                raise Mistake(1, f"the head '{head[:60]}' is a map of {list(shape)}, not one score for each class")
            if shape[0] != outputs:
                raise Mistake(
                    1,
                    f"the head '{head[:60]}' has {shape[0]} outputs instead of {outputs}, and which layer to change "
                    "cannot be told",
                )


def require_unshared(graph: Graph) -> None:
    """Raise Mistake for layers that share parameters, which is not supported."""
    names = Counter(name for layer in graph.layers for name in layer.shared())
    for layer in graph.layers:
        if twice := [name for name in layer.shared() if names[name] > 1]:
            raise layer.mistake(f"it shares the parameter '{twice[0][:40]}' with another layer, which is not supported")
