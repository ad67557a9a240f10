"""What a process sends, and how long it waits for the others."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Traffic:
    """Bytes that this process sends and seconds that it waits, by collective; ``read`` starts anew.

    Bytes are those of the best algorithm for each collective (a ring's for an all-reduce), as the formulas of a
    planner count them; headers are left out. ``busy`` seconds are those in which at least one collective was under way,
    ``waited`` those in which the training thread stood still for one. What a GPU carries out (NCCL) has ended for the
    host once it is queued, so there both are the host's time, which says little.
    """

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.busy = 0.0
        self.waited = 0.0
        self._lock = threading.Lock()  # collectives end in threads of their own
        self._under_way, self._since = 0, 0.0

    def add(self, collective: str, sent: float) -> None:
        """Count one collective of which this process sends so many bytes."""
        self.sent[collective] += round(sent)

    def begin(self) -> None:
        """Take note that a collective has begun."""
        with self._lock:
            if self._under_way == 0:
                self._since = time.perf_counter()
            self._under_way += 1

    def end(self) -> None:
        """Take note that one has ended, or failed."""
        with self._lock:
            self._under_way -= 1
            if self._under_way == 0:
                self.busy += time.perf_counter() - self._since

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within ``with`` as waited."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - begun

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave out what is sent within ``with``, where all that is begun also ends."""
        sent, waited, busy = self.sent.copy(), self.waited, self.busy
        try:
            yield
        finally:
            self.sent, self.waited, self.busy = sent, waited, busy

    def read(self, steps: int) -> dict[str, float]:
        """Return scalars for the log, per step where they are amounts; then start anew."""
        steps = max(1, steps)
        with self._lock:
            now = time.perf_counter()
            busy = self.busy + (now - self._since if self._under_way else 0.0)
            self.busy, self._since = 0.0, now
        scalars = {f"communication/{name}_bytes": sent / steps for name, sent in sorted(self.sent.items())}
        scalars["communication/bytes"] = sum(self.sent.values()) / steps
        scalars["communication/busy_ms"] = 1000 * busy / steps
        scalars["communication/waited_ms"] = 1000 * self.waited / steps
        # What was hidden behind computing, of the time that something was under way.
        scalars["communication/overlap"] = max(0.0, 1 - self.waited / busy) if busy else 0.0
        self.sent, self.waited = Counter(), 0.0
        return scalars
