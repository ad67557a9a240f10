"""Built-in strategies: single."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Parallel, hookimpl

if TYPE_CHECKING:
    from engine.interfaces import Strategy
    from engine.registry import Store


@dataclass
class Single(Parallel):
    """One process does all the work."""

    def build(self) -> Strategy:
        """Make the strategy."""
        from .single import SingleProcess

        return SingleProcess()


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in strategies."""
    store.add("parallel", "single", Single)
