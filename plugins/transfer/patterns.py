"""Layers by name or pattern, and factors for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from engine import UsageError
from engine.anatomy import Anatomy
from engine.errors import did_you_mean
from engine.freezing import owned


def parameters_of(anatomy: Anatomy, pattern: str, option: str) -> frozenset[str]:
    """Return the names of the parameters of all that a pattern names.

    That may be layers, with the normalisations behind them, blocks of layers, a normalisation alone, or parameters.
    Raises UsageError with the nearest name if there is none such.
    """
    named = dict(_named(anatomy))
    found: set[str] = set()
    for name, parameters in named.items():
        if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*"):
            found.update(parameters)
    if not found:
        layers = [layer.name for layer in anatomy.layers]
        raise UsageError(f"{option}: the model has no layer '{pattern}'{did_you_mean(pattern, layers)}")
    return frozenset(found)


def _named(anatomy: Anatomy) -> Iterator[tuple[str, Sequence[str]]]:
    for layer in anatomy.layers:
        yield from ((name, [name]) for name in layer.parameters)
        yield from ((name, own) for name in layer.modules if name != layer.name and (own := owned(layer, name)))
        yield layer.name, layer.parameters


def factors_of(anatomy: Anatomy, given: Mapping[str, float], option: str) -> dict[str, float]:
    """Return the factor of each parameter that a pattern of ``given`` names; the last such pattern counts."""
    return {name: factor for pattern, factor in given.items() for name in parameters_of(anatomy, pattern, option)}


def parse_factors(texts: Sequence[str], option: str) -> dict[str, float]:
    """Return factors by pattern. Raises UsageError for an entry that is no LAYER:FACTOR."""
    given: dict[str, float] = {}
    for text in texts:
        pattern, _, number = text.rpartition(":")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not pattern or not 0 <= factor < math.inf:
            raise UsageError(f"{option}: '{text}' is no LAYER:FACTOR with a factor of 0 or more, as fc6:0.5")
        given.pop(pattern, None)  # a pattern given again is the last
        given[pattern] = factor
    return given
