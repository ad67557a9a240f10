"""Choices and options that follow from Caffe's files: as overrides, as an experiment, and put into composed options."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import Options, Session, UsageError

Value = str | int | float | bool | list[Any]


@dataclass
class Composition:
    """Which component each group has, and values of options by their keys (model.prototxt, run.steps).

    In ``choices`` a group that takes several has a list of names.
    """

    choices: dict[str, str | list[str]] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)

    def words(self) -> list[str]:
        """Return all of it as overrides."""
        chosen = {**self.choices, **self.values}
        return [f"{key}={override_of(value)}" for key, value in chosen.items()]

    def experiment(self, summary: str) -> str:
        """Return all of it as the text of an experiment's YAML file."""
        lines = ["# @package _global_", f"# {summary}", "defaults:"]
        lines += [f"  - override /{group}: {json.dumps(choice)}" for group, choice in self.choices.items()]
        lines += ["  - _self_", ""]
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            *above, last = key.split(".")
            place = tree
            for part in above:
                place = place.setdefault(part, {})
            place[last] = value
        return "\n".join([*lines, *_yaml(tree, "")]) + "\n"

    def require_unset(self, overrides: Sequence[str]) -> None:
        """Raise UsageError for an override of a group that this decides."""
        for word in overrides:
            group = word.partition("=")[0].lstrip("+").partition(".")[0]
            if group in self.choices:
                raise UsageError(f"{word}: the import decides about {group}; change it afterwards, with checkpoint=")

    def session(self, session: Session) -> Session:
        """Return a session with these choices and values in its options, where nobody typed others."""
        typed = {word.partition("=")[0].lstrip("+") for word in session.overrides}
        changed: dict[str, Any] = {group: self._components(session, group) for group in self.choices}
        options: Options = dataclasses.replace(session.options, **changed)
        for part in ("run", "save"):
            own = {key.partition(".")[2]: v for key, v in self.values.items() if key.startswith(f"{part}.")}
            own = {name: value for name, value in own.items() if f"{part}.{name}" not in typed}
            setattr(options, part, dataclasses.replace(getattr(options, part), **own))
        kept = [word for word in self.words() if word.partition("=")[0] not in typed]
        return dataclasses.replace(
            session,
            options=options,
            overrides=[*kept, *session.overrides],
            choices={**session.choices, **self.choices},
        )

    def _components(self, session: Session, group: str) -> Any:
        choice = self.choices[group]
        if isinstance(choice, str):
            return self._component(session, group, choice, f"{group}.")
        return {name: self._component(session, group, name, f"{group}.{name}.") for name in choice}

    def _component(self, session: Session, group: str, name: str, prefix: str) -> Any:
        own = {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}
        return session.registry.entry(group, name).options(**own)


def override_of(value: Value) -> str:
    """Return a value as it stands in an override. Text must have neither single quotes nor dollars in it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(override_of, value))}]"
    if isinstance(value, str):
        return value if value and all(sign.isalnum() or sign in "_./-" for sign in value) else f"'{value}'"
    return repr(value)


def _yaml(tree: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_yaml(value, f"{indent}  ")]
        else:  # a JSON value is one of YAML's, too
            lines.append(f"{indent}{key}: {json.dumps(value)}")
    return lines
