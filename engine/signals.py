"""Stop requests: a signal asks, the loop answers at the end of its step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from engine.distributed.place import place_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequests:
    """Within ``with``, SIGTERM, SIGINT and SIGUSR1 set ``requested`` to their name instead of ending the process.

    A SIGINT after an earlier request raises KeyboardInterrupt at once, and so does what follows a SIGINT: a launcher
    passes a second Ctrl-C on as SIGTERM. Outside the main thread, where Python allows no handlers, nothing is installed
    and ``requested`` stays None. Earlier handlers come back on leaving.
    """

    def __init__(self) -> None:
        self._place, self._told = place_of(os.environ), ""
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
        if self.requested and "SIGINT" in (self.requested, signal.Signals(number).name):
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        # Of several processes the first tells, and of a SIGTERM only once all stop: launchers send it to those that are
        # left when one was lost, too.
        if self._place.world == 1 or (self._place.rank == 0 and number != signal.SIGTERM):
            self.tell(self.requested)

    def tell(self, name: str) -> None:
        """Tell, once, that the run stops after this step by the signal of this name."""
        if name != self._told:
            again = "; Ctrl-C once more ends it at once, without one" if name == "SIGINT" else ""
            # os.write, because a handler may interrupt a print.
            os.write(2, f"engine: {name}: stopping after this step, with a checkpoint{again}\n".encode())
        self._told = name
