"""The columns of images and labels in tables of Arrow, by name or by what Hugging Face's datasets wrote of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import UsageError

from .files import needed
from .labelled import as_numbers, numbered

IMAGE_NAMES, LABEL_NAMES = ("image", "img"), ("label", "labels")
METADATA = b"huggingface"


@dataclass(frozen=True)
class Columns:
    """image, label: names of the columns. struct: images are structs with bytes. names: of the classes, if known.

    kind: what the labels are.
    """

    image: str
    label: str
    struct: bool
    names: tuple[str, ...]
    kind: str


def columns_of(schema: Any, file: str, image: str | None, label: str | None) -> Columns:
    """Return the columns to use of a file with this schema.

    Raises UsageError naming the file if a column is missing, not to be guessed, or of another type.
    """
    types = needed("pyarrow", "arrow").types
    features = _features(schema, file)
    image = image or _guessed(schema, features, "Image", IMAGE_NAMES, "image", file)
    label = label or _guessed(schema, features, "ClassLabel", LABEL_NAMES, "label", file)
    for name, field in ((image, "image"), (label, "label")):
        if schema.get_field_index(name) < 0:
            raise UsageError(f"{file} has no column {name}, but {', '.join(schema.names)}; set data.{field}")
    kind = schema.field(image).type
    struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    content = kind.field("bytes").type if struct else kind
    if not (types.is_binary(content) or types.is_large_binary(content)):
        raise UsageError(f"{file}: column {image} is {kind}, expected binary or a struct with bytes; set data.image")
    labels = schema.field(label).type
    plain = labels.value_type if types.is_dictionary(labels) else labels
    if not (types.is_integer(plain) or types.is_string(plain) or types.is_large_string(plain)):
        raise UsageError(f"{file}: column {label} is {labels}, expected whole numbers or names; set data.label")
    names = tuple(features.get(label, {}).get("names") or ())
    return Columns(image, label, struct, names, "whole numbers" if types.is_integer(plain) else "names")


def require_alike(columns: Columns, first: Columns, file: str, first_file: str) -> None:
    """Raise UsageError naming a file whose labels mean something else than the first one's."""
    if columns.kind != first.kind:
        raise UsageError(f"{file}: its labels are {columns.kind}, those of {first_file} {first.kind}: use one kind")
    if columns.names != first.names:
        raise UsageError(
            f"{file}: its ClassLabel's names are not those of {first_file}; write all files with the same names"
        )


def bytes_of(array: Any, columns: Columns) -> Any:
    """Return the binary array inside an array of images; a missing image is null in it."""
    if not columns.struct:
        return array
    return array.flatten()[array.type.get_field_index("bytes")]


def labels_of(array: Any, prefix: str, first: int) -> list[int] | list[str]:
    """Return the labels in an array, as numbers or names; raises UsageError naming the first row without one."""
    found = array.to_pylist()
    if None in found:  # null_count does not count what is missing inside a dictionary
        raise UsageError(f"{prefix} {first + found.index(None)} has no label; leave such rows out")
    return found


def targets_and_names(
    labels: Sequence[int | str], trained: Callable[[], Sequence[int | str]], names: Sequence[str], classes: int | None,
    name_of: Callable[[int], str],
) -> tuple[np.ndarray, list[str]]:  # fmt: skip
    """Return labels as numbers int64, and the names of the classes.

    The names are the schema's, else the training labels' in order, else numbers. Raises UsageError naming a record
    whose label is a name that is not one of them, or of another kind than the training labels.
    """

    def training() -> Sequence[int | str]:
        found = trained()
        for label in labels[:1]:
            if isinstance(label, str) != isinstance(found[0], str):
                kinds = ("a whole number", "a name")
                raise UsageError(
                    f"{name_of(0)} has {kinds[isinstance(label, str)]} as its label, the training records "
                    f"{kinds[isinstance(found[0], str)]}: use one kind"
                )
        return found

    if not labels or not isinstance(labels[0], str):
        known = list(names) or numbered(classes, lambda: max(0, max(int(label) for label in training())), name_of(0))
        return as_numbers(labels, name_of), known
    known = list(names) or sorted({str(label) for label in training()})
    number = {name: place for place, name in enumerate(known)}
    for index, label in enumerate(labels):
        if label not in number:
            raise UsageError(f"{name_of(index)} has the label '{label}', which no training record has")
    return np.array([number[str(label)] for label in labels], np.int64), known


def _features(schema: Any, file: str) -> dict[str, Any]:
    """Return what Hugging Face's datasets say about the columns; nothing where another program wrote the file."""
    text = (schema.metadata or {}).get(METADATA)
    if text is None:
        return {}
    try:
        found = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file}: the schema's huggingface metadata cannot be read; write the file again") from error
    return {name: feature for name, feature in found.items() if isinstance(feature, dict)}


def _guessed(schema: Any, features: dict[str, Any], kind: str, names: Sequence[str], field: str, file: str) -> str:
    for some in ([n for n, f in features.items() if f.get("_type") == kind], [n for n in names if n in schema.names]):
        if len(some) == 1:
            return some[0]
        if some:
            raise UsageError(f"{file} has {len(some)} columns of {field}s: {', '.join(some)}; set data.{field} to one")
    raise UsageError(f"{file} has no column {names[0]}, but {', '.join(schema.names)}; set data.{field}")
