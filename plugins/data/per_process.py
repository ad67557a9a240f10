"""A handle that no other process shares, for libraries whose handles do not outlive a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Handle = TypeVar("Handle")


class PerProcess(Generic[Handle]):
    """Makes the handle when a process first asks for it; threads share it, a forked process makes its own.

    What was inherited over a fork is kept and never touched: closing it could disturb the process it belongs to.
    """

    def __init__(self, make: Callable[[], Handle]) -> None:
        self._make = make
        self._handles: dict[int, Handle] = {}
        self._locks: dict[int, Lock] = {}  # each process its own, as a fork may happen while one is held

    def get(self) -> Handle:
        """Return this process's handle."""
        process = os.getpid()
        if process not in self._handles:
            with self._locks.setdefault(process, Lock()):
                if process not in self._handles:
                    self._handles[process] = self._make()
        return self._handles[process]
