"""What a model is made of, as a planner sees it: layers in the order in which they compute, with their sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from engine.layers import modes_kept

from ..hybrid.chains import MODULES, find_chains

SAMPLES = 2  # of the forward pass that shows the shapes


@dataclass(frozen=True)
class PlannedLayer:
    """A layer by its name in the model; all sizes are numbers (not bytes), and those marked are of one sample.

    kind: "conv", "linear", "by feature" (a function of single features, which takes any share of them) or "other".
    splits: whether processes can share it by columns or rows. chained: its input is the output of the layer before it
    that splits, through nothing but functions of single features.
    """

    name: str
    kind: str
    inputs: int  # of one sample
    outputs: int  # of one sample
    weights: int
    biases: int = 0
    frozen: int = 0  # of weights and biases
    multiply_adds: int = 0  # of one sample, forward
    splits: bool = False
    chained: bool = False
    input_gradient: bool = True  # whether somebody needs the gradient of its input
    number_bytes: int = 4  # of a parameter, and of its gradient
    activation_bytes: int = 4  # of a number of its output

    @property
    def parameters(self) -> int:
        """How many numbers it keeps."""
        return self.weights + self.biases

    @property
    def trained(self) -> int:
        """How many of its parameters have a gradient."""
        return self.parameters - self.frozen


def layers_of(model: nn.Module, images: Sequence[int]) -> list[PlannedLayer]:
    """Return the layers of ``model`` for images of shape (channels, height, width), in the order they compute in.

    Those are the modules without children and any others that own parameters. The model runs once on two black images
    in evaluation mode and is left as it was. A layer that runs several times has the sizes of its first run and the
    multiply-adds of all; one that never runs is at the end, without sizes. A parameter that several layers share counts
    for the first.
    """
    named = {m: name for name, m in model.named_modules() if not list(m.children()) or list(m.parameters(False))}
    seen = _Seen(named)
    first = next(model.parameters(), torch.zeros(()))
    black = torch.zeros(SAMPLES, *images, device=first.device, dtype=first.dtype if first.is_floating_point() else None)
    watches = [module.register_forward_hook(seen.look, with_kwargs=True) for module in named]
    try:
        # With gradients, so that each layer tells whether its input needs one.
        with torch.enable_grad(), modes_kept(model), torch.random.fork_rng(devices=[]):
            model.eval()(black)
    finally:
        for watch in watches:
            watch.remove()
    order = [*seen.sizes, *(module for module in named if module not in seen.sizes)]
    counted: set[Tensor] = set()
    chains = [chain.layers for chain in find_chains(model)[0]]
    splits, chained = ({name for chain in chains for name in chain[first:]} for first in (0, 1))
    return [
        replace(layer, splits=layer.name in splits and layer.trained > 0, chained=layer.name in chained)
        for layer in (_planned(named[module], module, seen, counted) for module in order)
    ]


class _Seen:
    """Notes the sizes that modules compute with, in the order of their first run."""

    def __init__(self, named: Mapping[nn.Module, str]) -> None:
        self.named = named
        self.sizes: dict[nn.Module, tuple[int, int, int, bool]] = {}  # inputs, outputs, bytes of a number, gradient
        self.work: dict[nn.Module, int] = {}

    def look(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        """Note one run of a module."""
        given = [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]
        made = output if isinstance(output, Tensor) else next((v for v in _flat(output)), torch.zeros(0))
        inputs, outputs = (sum(value.numel() for value in values) // SAMPLES for values in (given, [made]))
        if module not in self.sizes:
            self.sizes[module] = inputs, outputs, made.element_size(), any(value.requires_grad for value in given)
        self.work[module] = self.work.get(module, 0) + _multiply_adds(module, outputs)


def _flat(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _flat(item)


def _multiply_adds(module: nn.Module, outputs: int) -> int:
    """Return the multiply-adds of one sample: as many for each output as it has weights; none of other layers."""
    if isinstance(module, nn.Linear):
        return outputs * module.in_features
    if isinstance(module, nn.modules.conv._ConvNd):
        each = prod(module.kernel_size) * module.in_channels // module.groups
        return outputs * each  # of a transposed convolution about as many: its strides leave some out
    return 0


def _planned(name: str, module: nn.Module, seen: _Seen, counted: set[Tensor]) -> PlannedLayer:
    own = {key: p for key, p in module.named_parameters(recurse=False) if p not in counted}
    counted.update(own.values())
    inputs, outputs, activation_bytes, input_gradient = seen.sizes.get(module, (0, 0, 4, False))
    biases = sum(p.numel() for key, p in own.items() if key == "bias")
    return PlannedLayer(
        name,
        _kind(module),
        inputs,
        outputs,
        sum(p.numel() for p in own.values()) - biases,
        biases,
        sum(p.numel() for p in own.values() if not p.requires_grad),
        seen.work.get(module, 0),
        input_gradient=input_gradient,
        number_bytes=max((p.element_size() for p in own.values()), default=4),
        activation_bytes=activation_bytes,
    )


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    return "by feature" if isinstance(module, MODULES) else "other"


def statistics_of(model: nn.Module) -> int:
    """Return how many numbers BatchNorm and the like keep beside parameters, which data parallelism averages."""
    return sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())


@contextmanager
def timed(model: nn.Module, clock: Callable[[], float], spent: dict[str, float]) -> Iterator[None]:
    """Within ``with``, every forward pass of a module without children adds its seconds to ``spent``, by name."""
    begun: dict[nn.Module, float] = {}
    leaves = {module: name for name, module in model.named_modules() if not list(module.children())}

    def start(module: nn.Module, arguments: Any) -> None:
        begun[module] = clock()

    def stop(module: nn.Module, arguments: Any, output: Any) -> None:
        spent[leaves[module]] = spent.get(leaves[module], 0.0) + clock() - begun[module]

    watches: list[Any] = []
    for module in leaves:
        watches += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    try:
        yield
    finally:
        for watch in watches:
            watch.remove()
