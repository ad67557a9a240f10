"""The options of a command as a flat table: dotted key to dataclass field, from the chosen components."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.options import GROUPS, Options
from engine.registry import Registry


@dataclass(frozen=True)
class Setting:
    """One option: its dataclass field, and its type with annotations resolved."""

    field: dataclasses.Field[Any]
    type: Any

    @property
    def help(self) -> str:
        """The text that its declaration gives, empty if none."""
        return str(self.field.metadata.get("help", ""))

    @property
    def choices(self) -> Sequence[str]:
        """The values it is limited to; empty if it is not."""
        return tuple(self.field.metadata.get("choices", ()))

    @property
    def open(self) -> bool:
        """Whether keys may follow below it: a dict or a list."""
        kinds = (self.type, *typing.get_args(self.type))  # the arguments too, for list[int] | None
        return any(kind in (dict, list) or typing.get_origin(kind) in (dict, list) for kind in kinds)


def settings(options: type, prefix: str) -> dict[str, Setting]:
    """Return the fields of an options class below ``prefix``, nested dataclasses written out."""
    hints = typing.get_type_hints(options)
    table: dict[str, Setting] = {}
    for f in dataclasses.fields(options):
        if dataclasses.is_dataclass(hints[f.name]):
            table |= settings(hints[f.name], f"{prefix}{f.name}.")
        else:
            table[f"{prefix}{f.name}"] = Setting(f, hints[f.name])
    return table


def root() -> dict[str, Setting]:
    """Return the options that belong to no component: run.*, save.*, out, resume."""
    hints = typing.get_type_hints(Options)
    table: dict[str, Setting] = {}
    for f in dataclasses.fields(Options):
        if dataclasses.is_dataclass(hints[f.name]) and f.name not in GROUPS:
            table |= settings(hints[f.name], f"{f.name}.")
        elif f.name not in GROUPS:
            table[f.name] = Setting(f, hints[f.name])
    return table


def component(registry: Registry, group: str, name: str) -> dict[str, Setting]:
    """Return a component's fields under their full keys: ``model.width``, or ``augment.flip.p`` in a list group."""
    prefix = f"{group}.{name}." if GROUPS[group].many else f"{group}."
    return settings(registry.entry(group, name).options, prefix)


def table(registry: Registry, chosen: Mapping[str, Sequence[str]]) -> dict[str, Setting]:
    """Return every option of a command: the root's and those of each chosen component."""
    known = root()
    for group, names in chosen.items():
        for name in names:
            known |= component(registry, group, name)
    return known


def shown(value: Any) -> str:
    """Return a value as it would be typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(shown(item) for item in value)}]"
    if isinstance(value, str) and (not value or any(c in value for c in " ,[]{}:=")):
        return f"'{value}'"
    return str(value)
