"""Stop requests: a signal asks, the loop answers at the end of its step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequests:
    """Within ``with``, SIGTERM, SIGINT and SIGUSR1 set ``requested`` to their name instead of ending the process.

    A SIGINT after an earlier request raises KeyboardInterrupt at once. Outside the main thread, where Python allows no
    handlers, nothing is installed and ``requested`` stays None. Earlier handlers come back on leaving.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        again = "; Ctrl-C once more ends it at once, without one" if number == signal.SIGINT else ""
        # os.write, because a handler may interrupt a print.
        os.write(2, f"engine: {self.requested}: stopping after this step, with a checkpoint{again}\n".encode())
