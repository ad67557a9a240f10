"""Who does not answer: each process tells a store that it is alive and which collective it has begun."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed import Store

from engine.distributed.store import NoAnswer, PatientStore
from engine.errors import RunFailed

BEATS = 20  # within the time after which a collective is given up
LONGEST = 0.5  # seconds between two beats
ENOUGH = 2.5  # beats in which a process that is alive surely tells something, where nothing else needs the machine
KEEPER = 0  # the rank that keeps the store


class ProcessLost(RunFailed):
    """Another process has died or does not answer: all have to start again, from the newest checkpoint.

    silent: the ranks that do not answer, if it is that.
    """

    def __init__(self, text: str, silent: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.silent = silent


@dataclass(frozen=True)
class Beat:
    """What a process last told: how often it has done so, how many collectives it has begun, and the last of them."""

    count: int
    begun: int
    doing: str


class Watch:
    """Tells the others in the background that this process is alive; says which of them are not."""

    def __init__(self, store: Store, rank: int, world: int, timeout: float) -> None:
        self._rank, self._world = rank, world
        self._timeout, self._every = timeout, min(LONGEST, timeout / BEATS)
        self._store = PatientStore(store, 2 * ENOUGH * self._every)
        self._begun, self._doing = 0, "nothing yet"
        self.exchanged: Counter[str] = Counter()  # values exchanged through the store, by who took part
        self._ended = threading.Event()
        self._tell(0)
        self._thread = threading.Thread(target=self._beat, name="engine-beat", daemon=True)
        self._thread.start()

    def begin(self, collective: str) -> None:
        """Take note that this process begins a collective."""
        self._begun += 1
        self._doing = collective

    def close(self) -> None:
        """Beat no more."""
        self._ended.set()
        self._thread.join(2 * self._every)

    def lost(self, collective: str, reason: str) -> ProcessLost:
        """Return the error for a collective that has failed; it names the processes that do not answer or are late."""
        try:
            silent, blame = self._blame()
        except NoAnswer:
            silent, blame = [KEEPER], f"rank {KEEPER} does not answer"
        except RuntimeError:
            silent, blame = [], f"rank {KEEPER} has ended"  # and the store with it
        return ProcessLost(f"rank {self._rank}: {collective} failed ({reason}); {blame}", silent)

    def _blame(self) -> tuple[list[int], str]:
        """Return who does not answer, and in words who is to blame."""
        if (failed := self.failed()) is not None:
            return [], f"rank {failed} has failed: its message says why"
        before = self._beats()
        time.sleep(ENOUGH * self._every)
        after = self._beats()
        others = [rank for rank in range(self._world) if rank != self._rank]
        silent = [rank for rank in others if after[rank].count == before[rank].count]
        if silent:
            return silent, "; ".join(f"rank {rank} does not answer, last in {after[rank].doing}" for rank in silent)
        late = [rank for rank in others if after[rank].begun < self._begun]
        if late:
            return [], "; ".join(f"rank {rank} is behind, last in {after[rank].doing}" for rank in late)
        return [], "all processes are alive: was the connection cut?"

    def alive(self, rank: int, since: Beat | None) -> tuple[bool, Beat]:
        """Return whether a process has told something since it told ``since``, and what it told last."""
        beat = self._of(rank)
        return since is None or beat.count != since.count, beat

    @property
    def patience(self) -> float:
        """Seconds in which a process that is alive tells something, whatever else it does."""
        return max(BEATS * self._every, self._timeout / 2)

    def tell_failure(self) -> None:
        """Let the others know that this process has failed, and says why."""
        self._store.set("failed", str(self._rank))

    def failed(self) -> int | None:
        """Return the rank that has told that it failed, if one has."""
        told = self._store.get("failed")
        return None if told is None else int(told)

    def linger(self) -> None:
        """Where this process keeps the store and has failed: stay until the others have seen that, and why."""
        if self._rank == KEEPER:
            time.sleep(ENOUGH * self._every)

    def _beats(self) -> list[Beat]:
        return [self._of(rank) for rank in range(self._world)]

    def _of(self, rank: int) -> Beat:
        told = self._store.get(f"beat/{rank}")
        if told is None:
            return Beat(-1, -1, "nothing: it has not started")
        count, begun, doing = told.split(" ", 2)
        return Beat(int(count), int(begun), doing)

    def _tell(self, count: int) -> None:
        self._store.set(f"beat/{self._rank}", f"{count} {self._begun} {self._doing}")

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(self._every):
            count += 1
            try:
                self._tell(count)
            except NoAnswer:  # it may still come
                continue
            except RuntimeError:  # the store has gone: the training thread will meet it, and say so
                return


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, without what torch puts before it and the advice after it."""
    line = str(error).strip().split("\n")[0]
    return re.sub(r"^(Got the following error.*?RuntimeError: )?(\[\S+:\d+\] )?", "", line).split(". ")[0]
