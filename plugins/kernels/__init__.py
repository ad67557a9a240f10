"""Built-in convolution kernels: native."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Kernels, hookimpl

if TYPE_CHECKING:
    from engine.interfaces import KernelChooser
    from engine.registry import Store


@dataclass
class Native(Kernels):
    """torch's own convolutions (oneDNN on a CPU, cuDNN on a GPU)."""

    def build(self) -> KernelChooser:
        """Make the chooser, which leaves every layer as it is."""
        from .native import NativeChooser

        return NativeChooser()


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in kernels."""
    store.add("kernels", "native", Native)
