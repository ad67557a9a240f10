"""Which layers are split, how, and over how many processes: the way that sends the fewest bytes.

Counted is what one process sends in a step, of the best algorithm for each collective. With K processes in groups of G,
B rows in each process, and a layer of n x m weights (sizes in elements, each way for activations):

    summed gradients, data parallel         2 (K-1)/K (n m + m)
    part of a split layer's                 2 (K-G)/K (n m + m) / G
    column: all inputs of everybody         (G-1) B n      and back
    row: own inputs of everybody            (G-1) B n / G  and back; nothing where the layer before left them so
    row: sums of everybody's products       (G-1) B m      and back
    column, where rows are wanted back      (G-1) B m / G  and back

So for one layer by itself column is cheaper than summed gradients iff G B < m, and row iff G B < n, whatever the link.
A chain is decided as a whole, by dynamic programming over the layout between two layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf

from torch import nn

from .chains import Chain
from .layers import COLUMN, ROW
from .layouts import BATCH, FEATURE

REPLICATED = "replicated"


@dataclass(frozen=True)
class Setting:
    """What the bytes depend on: processes, those of a group, rows in each process, bytes of an activation.

    rows are those of a step; passes: how often a step sums the gradients of split layers.
    """

    world: int
    group: int
    rows: int
    element: int = 4
    passes: int = 1


@dataclass(frozen=True)
class Choice:
    """What becomes of a layer, and what a process sends for it in a step, in bytes."""

    name: str
    inputs: int
    outputs: int
    kind: str
    before: str
    after: str
    activations: float
    gradients: float
    summed: float  # what data parallelism would send instead

    @property
    def sent(self) -> float:
        """Bytes in all."""
        return self.activations + self.gradients


Kinds = Callable[[str], Sequence[str]]
"""Gives the kinds that a layer may be of, the first preferred where two cost the same."""


def choose(
    chains: Sequence[Chain], layers: Mapping[str, nn.Linear], kinds: Kinds, setting: Setting
) -> list[list[Choice]]:
    """Return for each chain the choices that send the fewest bytes."""
    return [_choose(chain, layers, kinds, setting) for chain in chains]


def _choose(chain: Chain, layers: Mapping[str, nn.Linear], kinds: Kinds, setting: Setting) -> list[Choice]:
    best: dict[str, tuple[float, list[Choice]]] = {BATCH: (0.0, [])}
    for number, name in enumerate(chain.layers):
        gradient = chain.gradient if number == 0 else True
        last = number == len(chain.layers) - 1
        reached: dict[str, tuple[float, list[Choice]]] = {}
        for before, (sent, so_far) in best.items():
            for choice in ways(name, layers[name], kinds(name), before, gradient, setting):
                known, _ = reached.get(choice.after, (inf, []))
                if sent + choice.sent < known and not (last and choice.after != BATCH):
                    reached[choice.after] = (sent + choice.sent, [*so_far, choice])
        best = reached
    return best[BATCH][1]


def ways(
    name: str, layer: nn.Linear, kinds: Sequence[str], before: str, gradient: bool, setting: Setting
) -> Iterator[Choice]:
    """Yield all that a layer can become behind a layout."""
    n, m, group, world = layer.in_features, layer.out_features, setting.group, setting.world
    own_size = layer.weight.element_size()
    weights = layer.weight.numel() * own_size * layer.weight.requires_grad  # of gradients
    biases = 0 if layer.bias is None else m * own_size * layer.bias.requires_grad
    summed = 2 * (world - 1) / world * (weights + biases)
    share = 2 * (world - group) / world / group * setting.passes  # of a part's gradients, summed over its replicas
    sides = (
        (1 + gradient) * (group - 1) * setting.rows * setting.element,
        2 * (group - 1) * setting.rows * setting.element,
    )
    for kind in kinds:
        for after in (BATCH, FEATURE):
            if kind == REPLICATED:
                if before == after == BATCH:
                    yield Choice(name, n, m, kind, before, after, 0.0, summed, summed)
                continue
            narrow = min(m if kind == COLUMN or after == FEATURE else group, n if kind == ROW else group)
            if narrow < group:
                continue
            if kind == COLUMN:
                enters, leaves = (n if before == BATCH else group * ceil(n / group)), ceil(m / group)
                leaves = leaves if after == BATCH else 0
            else:
                enters, leaves = (ceil(n / group) if before == BATCH else 0), m
                leaves = leaves if after == BATCH else group * ceil(m / group)
            common = kind == ROW and after == BATCH  # a bias that all have
            gradients = share * (weights + (0 if common else biases)) + 2 * (world - 1) / world * biases * common
            sent = enters * sides[0] + leaves * sides[1]
            yield Choice(name, n, m, kind, before, after, sent, gradients, summed)


def total(choices: Sequence[Sequence[Choice]]) -> float:
    """Return the bytes that a process sends for all of these layers in a step."""
    return sum(choice.sent for chain in choices for choice in chain)


def split_layers(choices: Sequence[Sequence[Choice]]) -> list[Choice]:
    """Return the choices of layers that are split."""
    return [choice for chain in choices for choice in chain if choice.kind != REPLICATED]


def best_group(world: int, chosen: int, choose_with: Callable[[int], list[list[Choice]]]) -> int:
    """Return how many processes share a layer: ``chosen``, or what sends the fewest bytes, of equals the largest."""
    if chosen or world == 1:
        return chosen or 1
    sizes = [size for size in range(world, 1, -1) if world % size == 0]
    return min(sizes, key=lambda size: total(choose_with(size)))


def table(choices: Sequence[Sequence[Choice]], setting: Setting) -> str:
    """Return lines that say what becomes of each layer, and what that costs."""
    flat = [choice for chain in choices for choice in chain]
    width = max(len("layer"), *(len(choice.name) for choice in flat))
    groups = f"groups of {setting.group}" if setting.group < setting.world else f"all {setting.world}"
    lines = [
        f"hybrid: linear layers over {groups} processes, MB that a process sends in a step",
        f"{'layer':<{width}}  {'size':>13}  {'split':<10}  {'sends':>8}  {'as data':>8}",
    ]
    for each in flat:
        size = f"{each.inputs} x {each.outputs}"
        lines.append(
            f"{each.name:<{width}}  {size:>13}  {each.kind:<10}  {each.sent / 1e6:8.3f}  {each.summed / 1e6:8.3f}"
        )
    return "\n".join(lines)
