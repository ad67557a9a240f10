"""The rules that ``engine.option`` declares, kept: bounds, choices, and what must be given."""

from __future__ import annotations

import dataclasses
from typing import Any

from engine.errors import UsageError, did_you_mean


def check(options: Any, path: str = "") -> None:
    """Raise UsageError, naming the option, where a composed value is missing, out of bounds or no choice."""
    for f in dataclasses.fields(options):
        value, name, rules = getattr(options, f.name), f"{path}{f.name}".removeprefix("job."), f.metadata
        if dataclasses.is_dataclass(value):
            check(value, f"{name}.")
        elif isinstance(value, dict):
            for key, item in value.items():
                if dataclasses.is_dataclass(item):
                    check(item, f"{name}.{key}.")
        elif value == "???":
            raise UsageError(f"{name} must be given ({rules.get('help', 'no default')}): add {name}=... to the command")
        elif value is not None and rules:
            _check_rules(name, value, rules)


def _check_rules(name: str, value: Any, rules: Any) -> None:
    choices = rules.get("choices")
    if choices and value not in choices:
        raise UsageError(f"{name}={value}: no such choice{did_you_mean(str(value), choices)}")
    for rule, holds, words in (
        ("at_least", lambda bound: value >= bound, "at least"),
        ("at_most", lambda bound: value <= bound, "at most"),
        ("above", lambda bound: value > bound, "above"),
        ("below", lambda bound: value < bound, "below"),
    ):
        bound = rules.get(rule)
        if bound is not None and not holds(bound):
            raise UsageError(f"{name}={value}: must be {words} {bound:g}")
