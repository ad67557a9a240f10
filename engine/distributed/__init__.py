"""Many processes: where each of them is, how they speak with each other, and how they are started.

``place`` reads from the environment which process this is, ``group`` holds the collectives that strategies use and
counts what they send, ``watch`` says who does not answer, ``joining`` brings the processes of a run together,
``launching`` starts them through torch.distributed's elastic launcher.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.distributed.group import Group, Pending, current
    from engine.distributed.traffic import Traffic

__all__ = ["Group", "Pending", "Traffic", "current"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: the command line wants to know its place, and no more."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("engine.distributed.group"), name)
