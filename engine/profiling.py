"""Names for the parts of a step, which whoever profiles a run sees in the trace."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.autograd import profiler

_NOTHING = nullcontext()


def named_range(name: str) -> AbstractContextManager[Any]:
    """Return a context that a running torch profiler shows under ``name``; without one it costs nothing measurable.

    torch's own ``record_function`` takes some microseconds even where nobody records.
    """
    return profiler.record_function(name) if profiler._is_profiler_enabled else _NOTHING
