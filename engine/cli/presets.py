"""Reads ``conf/`` without Hydra: the default choices, the presets, and which components a command chooses.

Help and completion must answer before Hydra could even be imported; the checks of overrides need the same
facts to say which option was meant. Composition itself is Hydra's, from the same files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from engine.errors import UsageError, did_you_mean
from engine.options import GROUPS
from engine.registry import Registry

PRIMARY = "train"
EXPERIMENT = "experiment"
Choices = dict[str, list[str]]


@dataclass(frozen=True)
class Preset:
    """One YAML file of ``conf/``: what its defaults list includes and overrides, and its one-line description."""

    members: tuple[str, ...] = ()
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    summary: str = ""


class Presets:
    """The presets of the engine and of ``--config-dir``, beside the components that plugins registered."""

    def __init__(self, registry: Registry, config_dir: str | None = None) -> None:
        self._registry = registry
        self._roots: list[Traversable] = [files("engine.conf")]
        if config_dir is not None:
            if not Path(config_dir).is_dir():
                raise UsageError(f"--config-dir {config_dir}: no such folder; give one that holds experiment/*.yaml")
            self._roots.append(Path(config_dir))
        self.read = cache(self._read)

    def names(self, group: str) -> list[str]:
        """Return the presets of a group (or of "experiment"), sorted."""
        folders = [folder for root in self._roots if (folder := root.joinpath(group)).is_dir()]
        found = {file.name for folder in folders for file in folder.iterdir()}
        return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))

    def options(self, group: str) -> list[str]:
        """Return everything that can be chosen in a group: components and presets, sorted."""
        return sorted({*self._registry.names(group), *self.names(group)})

    def require(self, group: str, name: str) -> None:
        """Raise UsageError, with the nearest name, unless ``name`` can be chosen in ``group``."""
        if name not in self.options(group):
            hint = did_you_mean(name, self.options(group))
            raise UsageError(f"{group}={name}: no such {group}{hint}{self._registry.broken()}")

    def _read(self, path: str) -> Preset | None:
        """Return a preset by its path below ``conf/``, without ".yaml"; None if there is none."""
        for root in self._roots:
            file = root.joinpath(f"{path}.yaml")
            if file.is_file():
                text = file.read_text(encoding="utf-8")
                return _preset(text, path)
        return None

    def defaults(self) -> Choices:
        """Return the default choices, in the order of ``conf/train.yaml``."""
        primary = self.read(PRIMARY)
        return {group: list(names) for group, names in primary.choices.items() if group in GROUPS} if primary else {}

    def chosen(self, picks: Mapping[str, Sequence[str]]) -> Choices:
        """Return each group's components after ``picks`` (group to names), with presets resolved to their members.

        Several names of a group that takes one are the values of a sweep. Where no name is known (a glob), it may
        be any component of the group.
        """
        choices = self.defaults()
        for name in picks.get(EXPERIMENT, ()):
            preset = self.read(f"{EXPERIMENT}/{name}")
            choices |= {group: list(names) for group, names in preset.choices.items()} if preset else {}
        choices |= {group: list(names) for group, names in picks.items() if group in GROUPS}
        known = {group: list(dict.fromkeys(self.members(group, names))) for group, names in choices.items()}
        return {group: known[group] or self._registry.names(group) * bool(choices[group]) for group in choices}

    def members(self, group: str, names: Sequence[str]) -> Iterator[str]:
        """Yield the components that ``names`` of a group stand for, in order, repeated if they are."""
        for name in names:
            preset = self.read(f"{group}/{name}")
            if preset:
                yield from self.members(group, preset.members)
            elif (group, name) in self._registry.components:
                yield name


def _preset(text: str, path: str) -> Preset:
    try:
        content: Any = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path}.yaml cannot be read: {' '.join(str(error).split())}") from error
    members: list[str] = []
    choices: dict[str, tuple[str, ...]] = {}
    for entry in content.get("defaults", ()) if isinstance(content, dict) else ():
        if isinstance(entry, str):
            members += [] if entry == "_self_" else [entry]
            continue
        for key, value in entry.items():
            names = value if isinstance(value, list) else [] if value is None else [value]
            choices[key.removeprefix("override ").removeprefix("/")] = tuple(str(name) for name in names)
    comments = (line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#"))
    summary = next((line for line in comments if line and not line.startswith("@package")), "")
    return Preset(tuple(members), choices, summary)


def picks_of(words: Sequence[str]) -> Choices:
    """Return the names that overrides give to each group, from lists and sweeps alike: ``model=cnn,lenet``."""
    picks: Choices = {}
    for word in words:
        key, _, value = word.partition("=")
        if key in GROUPS or key == EXPERIMENT:
            picks.setdefault(key, []).extend(re.findall(r"\w+", value))
    return picks
