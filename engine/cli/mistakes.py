"""Turns what Hydra and OmegaConf raise while composing into one line that names the key or the file."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

COMPOSING = (HydraException, OmegaConfBaseException, YAMLError)
NOISE = re.compile(r"\n?\s*(full_key|reference_type|object_type|See https?)[:= ].*")
PRESET = re.compile(r"In '([\w/]+)': ")
TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def in_one_line(error: BaseException) -> str:
    """Return the innermost complaint, led by the file or the option that it is about."""
    chain = list(_chain(error))
    found = PRESET.match(str(error))
    file = f"{found[1]}.yaml: " if found else ""
    cause = next((e for e in chain if isinstance(e, OmegaConfBaseException)), None)
    if cause is None:
        text = PRESET.sub("", str(chain[0] if str(chain[0]) else chain[-1]).partition("\nConfig search path")[0])
        return file + " ".join(NOISE.sub("", text).split())
    key = getattr(cause, "full_key", None)
    return file + (f"{key}: " if key else "") + _reworded(" ".join(NOISE.sub("", str(cause)).split()))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reworded(text: str) -> str:
    """Say in the user's words what OmegaConf says in its own."""
    text = re.sub(
        r"Value '(.*)' of type '.*' could not be converted to (\w+)",
        lambda m: f"'{m[1]}' is not {TYPES.get(m[2], f'a value of type {m[2]}')}",
        text,
    )
    text = re.sub(r"Value '(.*)' is not a valid bool.*", r"'\1' is not true or false", text)
    text = re.sub(r"Invalid value assigned: (\w+) is not a ListConfig.*", r"a list is needed, as [1,2], not \1", text)
    text = re.sub(r"Key '(.*)' not in '(\w+)'", r"\2 has no option '\1'", text)
    text = re.sub(r"Invalid type assigned: .* a subclass of (\w+)\. value: (.*)", r"\2 cannot replace \1", text)
    return re.sub(r"field '.*' is not Optional", "null is not allowed here", text)
