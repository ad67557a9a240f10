"""A plugin-based training engine for ConvNets; this module lists the public names.

Importing it imports no torch: the names that need it are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, RunFailed, UsageError
from engine.hookspecs import hookimpl
from engine.options import (
    Augment,
    Data,
    Job,
    Kernels,
    Loss,
    Marginalize,
    Model,
    Observer,
    Optim,
    Options,
    Parallel,
    Precision,
    Schedule,
    Transfer,
    option,
    required,
)

if TYPE_CHECKING:
    from engine import interfaces as interfaces
    from engine.assembly import assemble as assemble
    from engine.interfaces import Batch as Batch
    from engine.interfaces import ConvSpec as ConvSpec
    from engine.interfaces import Records as Records
    from engine.randomness import Key as Key
    from engine.randomness import uniform as uniform
    from engine.run import Run as Run
    from engine.scoring import score as score
    from engine.session import Session as Session

__version__ = "0.1.0"

_LAZY = {
    "assemble": "engine.assembly",
    "Batch": "engine.interfaces",
    "ConvSpec": "engine.interfaces",
    "interfaces": "engine.interfaces",
    "Key": "engine.randomness",
    "Records": "engine.interfaces",
    "Run": "engine.run",
    "Session": "engine.session",
    "score": "engine.scoring",
    "uniform": "engine.randomness",
}

__all__ = [
    "Augment", "Data", "EngineError", "Job", "Kernels", "Loss", "Marginalize", "Model", "Observer", "Optim",
    "Options", "Parallel", "Precision", "RunFailed", "Schedule", "Transfer", "UsageError", "hookimpl", "option",
    "required", *_LAZY,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'engine' has no attribute '{name}'")
    module = import_module(_LAZY[name])
    return module if module.__name__ == f"engine.{name}" else getattr(module, name)
