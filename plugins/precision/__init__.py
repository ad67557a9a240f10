"""Built-in numeric policies: float32, float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Precision, hookimpl

if TYPE_CHECKING:
    from engine import interfaces
    from engine.registry import Store


@dataclass
class Float32(Precision):
    """Single precision throughout."""

    def build(self) -> interfaces.Precision:
        """Make the numeric policy."""
        from .full import Float32

        return Float32()


@dataclass
class Float64(Precision):
    """Double precision throughout, a reference to compare other numbers with."""

    def build(self) -> interfaces.Precision:
        """Make the numeric policy."""
        from .full import Float64

        return Float64()


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in numeric policies."""
    store.add("precision", "float32", Float32)
    store.add("precision", "float64", Float64)
