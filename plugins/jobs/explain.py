"""``engine explain``: the composed configuration, value by value, with the origin of each; and what trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.session import Origin, Session


def explain(session: Session, parameters: bool, inputs: Sequence[int], classes: int) -> None:
    """Print one line for each option and choice: key, value, origin; then for each parameter, if there is a transfer.

    parameters: also if there is none. inputs, classes: of images to make the model for; none: the composed data's.
    Raises UsageError where the model cannot be made for them, or its first weights do not fit.
    """
    print("\n\n".join("\n".join(block) for block in blocks(session.origins())))
    if parameters or session.choices.get("transfer", "none") != "none":
        from .parameters import tables

        for lines in tables(session, inputs, classes):
            print("\n" + "\n".join(lines))


def blocks(origins: Sequence[Origin]) -> Iterator[list[str]]:
    """Yield the aligned lines of each top-level key; choices and options without a group stand together."""
    keys = max(len(origin.key) for origin in origins)
    values = min(40, max(len(origin.value) for origin in origins))
    for _, block in groupby(origins, key=lambda origin: origin.key.partition(".")[0] if "." in origin.key else ""):
        yield [f"{origin.key:{keys}}  {origin.value:{values}}  {origin.source}" for origin in block]
