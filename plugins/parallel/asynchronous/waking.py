"""Hearing of a signal while waiting for other processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from engine.signals import SIGNALS


@contextmanager
def waking(wake: Callable[[], None]) -> Iterator[None]:
    """Within ``with``, call ``wake`` when a signal asks to stop, besides whoever listens to it already."""
    before: dict[int, Any] = {}

    def receive(number: int, frame: FrameType | None) -> None:
        wake()
        before[number](number, frame)

    if threading.current_thread() is threading.main_thread():
        before = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
        for number in before:
            signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
