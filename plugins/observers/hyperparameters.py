"""The options of a run as TensorBoard's hyper-parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from engine import Options

# What a run is kept in and who watches it are no hyper-parameters: they would differ in every job of a sweep.
LEFT_OUT = ("job", "observe", "save", "out", "resume")


def hyperparameters(options: Options, choices: Mapping[str, str | Sequence[str]]) -> dict[str, str | float]:
    """Return every option by its name on the command line: {"model": "lenet", "optim.lr": 0.1, ...}.

    Numbers stay numbers, so that TensorBoard can sort, filter and plot them; everything else is text. An option
    that is null or an empty list has no entry: a word among numbers would turn the whole column into text.
    """
    found: dict[str, str | float] = {}
    for group, choice in choices.items():
        if group not in LEFT_OUT and choice:
            found[group] = choice if isinstance(choice, str) else ", ".join(choice)
    for field in dataclasses.fields(options):
        if field.name not in LEFT_OUT:
            _flatten(field.name, getattr(options, field.name), found)
    return found


def _flatten(name: str, value: Any, found: dict[str, str | float]) -> None:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _flatten(f"{name}.{field.name}", getattr(value, field.name), found)
    elif isinstance(value, dict):
        for key, item in value.items():
            _flatten(f"{name}.{key}", item, found)
    elif isinstance(value, bool):
        found[name] = "true" if value else "false"
    elif isinstance(value, int | float | str):
        found[name] = value
    elif value:
        found[name] = str(value)
