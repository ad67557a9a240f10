"""Built-in transfer plans: none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Transfer, hookimpl

if TYPE_CHECKING:
    from engine import interfaces
    from engine.registry import Store


@dataclass
class NoTransfer(Transfer):
    """Every parameter trains from the first step to the last."""

    def build(self) -> interfaces.Transfer:
        """Make the transfer plan."""
        from .everything import TrainEverything

        return TrainEverything()


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in transfer plans."""
    store.add("transfer", "none", NoTransfer)
