"""Which layers to share by samples, which by columns and which by rows: the best choice, by dynamic programming.

After Jia et al. 2018 ("Exploring hidden dimensions in parallelizing convolutional neural networks"), for a chain of
layers. A linear layer may be computed by ``data`` (the whole layer, a share of the samples), by ``column`` (all
samples of the group, a share of the outputs) or by ``row`` (all samples, a share of the inputs, whose products are
then summed). Between layers the activations are sharded by samples ("batch"), by features ("feature"), on every process
("replicated"), or not yet summed ("partial"). What it costs to bring them from one form to another lies on the edge
between two layers, what it costs to compute a layer and to sum its gradients on the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from .costs import Exchange, Setting, all_gather, all_reduce, all_to_all, gradient, reduce_scatter
from .layers import PlannedLayer

DATA, COLUMN, ROW = CHOICES = ("data", "column", "row")
NEEDS = {DATA: "batch", COLUMN: "replicated", ROW: "feature"}
GIVES = {DATA: "batch", COLUMN: "feature", ROW: "partial"}

Price = Callable[[Exchange], float]
Work = Callable[[PlannedLayer, str], float]


def options_of(layer: PlannedLayer, setting: Setting, kinds: Sequence[str] = CHOICES) -> tuple[str, ...]:
    """Return how a layer may be shared, of ``kinds``: split only if every process gets columns, or rows, of it."""
    if not layer.splits or setting.split < 2:
        return (DATA,)
    wide = {DATA: True, COLUMN: layer.outputs >= setting.split, ROW: layer.inputs >= setting.split}
    return tuple(kind for kind in CHOICES if kind in kinds and wide[kind])


def convert(have: str, want: str, numbers: int, size: float, setting: Setting, back: bool = True) -> list[Exchange]:
    """Return the exchanges that bring activations of ``numbers`` numbers a sample from one form to another.

    And, if ``back``, their gradients the other way. size: bytes of a number.
    """
    if have == want:
        return []
    if (have, want) == ("partial", "replicated"):
        return convert(have, "feature", numbers, size, setting) + convert("feature", want, numbers, size, setting)
    group = setting.split
    if "feature" in (have, want):
        numbers = ceil(numbers / group) * group  # every process has as many columns on the wire
    own = setting.share * numbers  # as many, whether of the own samples or of the own features of all
    what = f"{have} to {want}"
    if {have, want} == {"batch", "feature"}:
        there = again = all_to_all(what, own, size, group)
    else:
        there, again = all_gather(what, own, size, group), reduce_scatter(what, group * own, size, group)
        if have == "partial":
            there, again = again, there
    return [there, again] if back else [there]


def edge(before: PlannedLayer | None, chosen: str, layer: PlannedLayer, choice: str, s: Setting) -> list[Exchange]:
    """Return what is exchanged between two layers, the one ``before`` computed as ``chosen``, the next by ``choice``.

    Without one before, activations are sharded by samples.
    """
    if before is None or chosen == DATA:
        return convert("batch", NEEDS[choice], layer.inputs, s.of_activation(layer), s, layer.input_gradient)
    size = s.of_activation(before)
    whole = NEEDS[choice] == "batch" or before.outputs >= s.split  # then every process gets columns of the outputs
    if layer.chained and whole:
        return convert(GIVES[chosen], NEEDS[choice], before.outputs, size, s) + _bias(before, chosen, NEEDS[choice], s)
    apart = edge(None, DATA, layer, choice, s)
    return end(before, chosen, s) + apart


def end(last: PlannedLayer | None, chosen: str, setting: Setting) -> list[Exchange]:
    """Return what is exchanged to have a layer's outputs sharded by samples, as the loss needs them."""
    if last is None or chosen == DATA:
        return []
    size = setting.of_activation(last)
    return convert(GIVES[chosen], "batch", last.outputs, size, setting) + _bias(last, chosen, "batch", setting)


def _bias(layer: PlannedLayer, chosen: str, then: str, setting: Setting) -> list[Exchange]:
    """Return the exchange of the gradient of a row-parallel layer's biases, which are added once sums are complete."""
    if chosen != ROW or not layer.biases or layer.frozen == layer.parameters:
        return []
    size = setting.of_gradient(layer)
    if then == "batch":
        return [all_reduce("biases", layer.biases, size, setting.world)]
    return _across(layer.biases, size, setting)


def _across(numbers: float, size: float, setting: Setting) -> list[Exchange]:
    """Return the exchange of summing a shard's gradients over the groups; each process has one of ``split`` shards."""
    groups = setting.world // setting.split
    return [all_reduce("gradients of shards", numbers / setting.split, size, groups)] if groups > 1 else []


def node(layer: PlannedLayer, choice: str, setting: Setting) -> list[Exchange]:
    """Return the exchange of a layer's gradients."""
    if choice == DATA:
        return gradient(layer, setting)
    numbers = layer.trained if choice == COLUMN else max(0, layer.trained - layer.biases)
    return _across(numbers, setting.of_gradient(layer), setting)


@dataclass(frozen=True)
class Plan:
    """A choice for every layer, in their order, and what it costs."""

    choices: tuple[str, ...]
    cost: float


def exchanges(layers: Sequence[PlannedLayer], choices: Sequence[str], setting: Setting) -> Iterator[Exchange]:
    """Yield all that is exchanged in a step if layers are shared by ``choices``; flags and statistics left out."""
    before, chosen = None, DATA
    for layer, choice in zip(layers, choices, strict=True):
        yield from node(layer, choice, setting)
        if layer.kind != "by feature":  # those take activations in any form
            yield from edge(before, chosen, layer, choice, setting)
            before, chosen = layer, choice
    yield from end(before, chosen, setting)


def best(
    layers: Sequence[PlannedLayer], setting: Setting, price: Price, work: Work, kinds: Sequence[str] = CHOICES
) -> Plan:
    """Return the choice, of ``kinds``, of the least total cost: every exchange's price and every layer's work.

    Exact for a chain, in a time proportional to 9 x its length. Of equal ones it is the one with more data parallelism.
    """
    # For each choice of the layer before: the least cost so far, and the choices made.
    ways: dict[str, tuple[float, tuple[str, ...]]] = {DATA: (0.0, ())}
    before: PlannedLayer | None = None
    for layer in layers:
        own = {c: work(layer, c) + _total(node(layer, c, setting), price) for c in options_of(layer, setting, kinds)}
        if layer.kind == "by feature":
            ways = {chosen: (cost + own[DATA], (*made, DATA)) for chosen, (cost, made) in ways.items()}
            continue
        reached = {}
        for choice, cost_here in own.items():
            candidates = [
                (cost + cost_here + _total(edge(before, chosen, layer, choice, setting), price), made)
                for chosen, (cost, made) in ways.items()
            ]
            cost, made = min(candidates, key=lambda candidate: candidate[0])
            reached[choice] = cost, (*made, choice)
        ways, before = reached, layer
    ended = [(cost + _total(end(before, chosen, setting), price), made) for chosen, (cost, made) in ways.items()]
    cost, made = min(ended, key=lambda candidate: candidate[0])
    return Plan(made, cost)


def _total(made: Sequence[Exchange], price: Price) -> float:
    return sum(price(exchange) for exchange in made)


def split_all(layers: Sequence[PlannedLayer], choice: str) -> tuple[str, ...]:
    """Return the choices that split whatever can be, all in one way."""
    return tuple(choice if layer.splits else DATA for layer in layers)
