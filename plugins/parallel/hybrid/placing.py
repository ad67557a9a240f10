"""Choosing a model's layers, and turning them into this process's parts of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from engine import UsageError
from engine.distributed.group import Group
from engine.errors import did_you_mean

from .chains import Chain, find_chains
from .choosing import REPLICATED, Choice, Setting, best_group, choose, split_layers, table
from .layers import COLUMN, ROW, KeyedDropout, Leading, Part, Pass, Split, SplitLinear, parts_of, split_linear
from .layouts import BATCH, FEATURE, Columns

SCHEMES = {"a": (COLUMN,), "b": (COLUMN,), "c": (COLUMN,), "d": (ROW, COLUMN)}
IN_PASSES = ("b", "c")


@dataclass(frozen=True)
class Wanted:
    """What is asked for: the scheme, patterns of layers (none: what is cheaper split), the group's size (0: choose)."""

    scheme: str = "d"
    layers: Sequence[str] = ()
    group: int = 0

    def require_possible(self, world: int) -> None:
        """Raise UsageError for a group that so many processes cannot make."""
        if self.group > world or (self.group and world % self.group):
            raise UsageError(
                f"parallel.degree={self.group}: {world} processes are not several groups of so many: choose a divisor "
                f"of {world}, or 0"
            )
        if self.group == 1 < world:
            raise UsageError("parallel.degree=1: a process by itself splits nothing: choose parallel=data")

    def kinds(self, name: str, layer: nn.Linear, group: int) -> Sequence[str]:
        """Return what a layer may become."""
        wide = {COLUMN: layer.out_features >= group, ROW: layer.in_features >= group}
        possible = [kind for kind in SCHEMES[self.scheme] if wide[kind]]
        if self.layers:
            named = any(fnmatchcase(name, pattern) for pattern in self.layers)
            return possible if named and possible else [REPLICATED]
        return [*possible, REPLICATED] if layer.weight.requires_grad else [REPLICATED]


@dataclass(eq=False)
class Placed:
    """What has become of a model. group: those who share a layer; replicas: those who have the same parts."""

    group: Group
    replicas: Group
    choices: Sequence[Sequence[Choice]]
    setting: Setting
    now: Pass
    untraced: str = ""
    dropouts: dict[str, KeyedDropout] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """The name of the first split layer."""
        return split_layers(self.choices)[0].name

    def describe(self) -> str:
        """Return lines that say what is split and what it costs."""
        remark = f"\nthe model cannot be traced, so each linear layer stands by itself: {self.untraced}"
        return table(self.choices, self.setting) + remark * bool(self.untraced)


def place(model: nn.Module, everyone: Group, wanted: Wanted, setting: Setting) -> Placed:
    """Turn the chosen layers of a model into parts, in place. Raises UsageError if there is nothing to split.

    setting: its group's size is chosen here.
    """
    chains, untraced = find_chains(model)
    modules = dict(model.named_modules())
    layers = {name: layer for chain in chains for name in chain.layers if isinstance(layer := modules[name], nn.Linear)}
    _require_matches(wanted, layers)

    def setting_of(group: int) -> Setting:
        passes = min(group, setting.passes)  # as many as processes share a layer, or one
        return Setting(setting.world, group, setting.rows, setting.element, passes)

    def choices_of(group: int) -> list[list[Choice]]:
        return choose(chains, layers, lambda name: wanted.kinds(name, layers[name], group), setting_of(group))

    size = best_group(everyone.world, wanted.group, choices_of)
    choices = choices_of(size)
    _require_something(choices, layers, setting.rows * size, wanted)
    group, replicas = _groups(everyone, size)
    placed = Placed(group, replicas, choices, setting_of(size), Pass(), untraced)
    for chain, chosen in zip(chains, choices, strict=True):
        _place_chain(placed, modules, chain, chosen, wanted.scheme in IN_PASSES)
    return placed


def _place_chain(
    placed: Placed, modules: Mapping[str, nn.Module], chain: Chain, chosen: Sequence[Choice], in_passes: bool
) -> None:
    """Turn a chain's layers into parts, and have the dropouts beside them draw by sample and feature."""
    leading = Leading()
    for choice in split_layers([chosen]):
        layer = modules[choice.name]
        assert isinstance(layer, nn.Linear)
        if choice.before == BATCH:
            leading = Leading()
        inputs, outputs = Columns(placed.group, choice.inputs), Columns(placed.group, choice.outputs)
        first = in_passes and choice.name == placed.first
        split_linear(
            layer, Split(choice.kind, choice.before, choice.after, inputs, outputs, placed.now, leading, first)
        )
        assert isinstance(layer, SplitLinear)
        placed.parts |= parts_of(choice.name, layer)
    for name, count in chain.dropouts.items():
        dropout = modules[name]
        dropout.__class__ = KeyedDropout
        assert isinstance(dropout, KeyedDropout)
        before = chosen[count - 1] if count else None
        dropout.layout = FEATURE if before is not None and before.after == FEATURE else BATCH
        dropout.columns = Columns(placed.group, before.outputs if before is not None else chosen[0].inputs)
        dropout.now = placed.now
        placed.dropouts[name] = dropout


def _groups(everyone: Group, size: int) -> tuple[Group, Group]:
    """Return those consecutive ranks that share a layer with this one, and those who have the same parts as it."""
    if size == everyone.world:
        return everyone, Group((everyone.ranks[everyone.rank],))
    world = everyone.world
    group = everyone.split([range(first, first + size) for first in range(0, world, size)])
    return group, everyone.split([range(place, world, size) for place in range(size)])


def _require_matches(wanted: Wanted, layers: Mapping[str, nn.Linear]) -> None:
    for pattern in wanted.layers:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise UsageError(
                f"parallel.layers: '{pattern}' is no linear layer that can be split{hint(pattern, layers)}"
            )


def hint(pattern: str, layers: Mapping[str, nn.Linear]) -> str:
    """Return what else could be meant."""
    return did_you_mean(pattern, layers) if layers else ": the model has none; choose parallel=data"


def _require_something(
    choices: Sequence[Sequence[Choice]], layers: Mapping[str, nn.Linear], rows: int, wanted: Wanted
) -> None:
    if split_layers(choices):
        return
    if not layers:
        raise UsageError(
            "parallel=hybrid: the model has no linear layer, so there is nothing to split: choose parallel=data"
        )
    widest = max(max(layer.in_features, layer.out_features) for layer in layers.values())
    raise UsageError(
        f"parallel=hybrid: there is nothing to split: no linear layer that trains (widest {widest}) sends fewer bytes "
        f"split than as a sum of gradients with {rows} rows in a group: choose parallel=data, or name layers in "
        "parallel.layers"
    )
