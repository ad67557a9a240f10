"""Networks whose weights and activations are one bit: layers to train, and packing them into a file that runs alone.

``load(path)`` gives a packed network; importing it imports no part of the training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.binary.network import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(f"module 'engine.binary' has no attribute '{name}'")
    from engine.binary.network import load

    return load
