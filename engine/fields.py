"""Fields of options: documented, with bounds and choices that are checked before anything is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import MISSING, field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a documented, checked field, as in ``alpha: float = option(0.2, "strength", above=0)``.

    A list or dict default is copied for each instance. Bounds and choices are checked after composition;
    None always passes, so an optional field needs no special case.
    """
    rules = {
        "help": help,
        "choices": tuple(choices),
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "below": below,
    }
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=rules)
    return field(default=default, metadata=rules)


def required(help: str) -> Any:
    """Declare a field that the user must give; its absence is answered with a line that names it."""
    return field(default="???", metadata={"help": help})  # OmegaConf's mark of a missing value


def default_of(f: dataclasses.Field) -> Any:
    """Return a field's default value ('???' where the user must give one)."""
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else "???"
