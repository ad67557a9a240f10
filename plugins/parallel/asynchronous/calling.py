"""How a process that is no server of its own accord speaks with the one that leads: it asks, and gets an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from engine import RunFailed

from .links import Link, LinkLost, Message, answers
from .listening import join

LOOK = 0.2  # seconds between two looks for a server that is not there


class RunOver(Exception):
    """The server has nothing more to do, or this process is to stop."""


class Caller:
    """One end of the link to the server that leads; it joins anew where that was lost, for ``patience`` seconds.

    ``stopped`` is set once a signal has come.
    """

    def __init__(self, address: tuple[str, int], interface: str, timeout: float, patience: float, who: str) -> None:
        self.address, self.interface, self.timeout = address, interface, timeout
        self.stopped = threading.Event()
        self._patience, self._who = patience, who
        self._link: Link | None = None

    def is_lost(self) -> bool:
        """Whether there is no link."""
        return self._link is None

    def connected(self, introduce: Callable[[], None]) -> bool:
        """Join the server, which may take time to come back; False if this process is asked to stop meanwhile.

        introduce: says who this is. Raises RunFailed if the server does not come, and what ``introduce`` raises.
        """
        (host, port), deadline = self.address, time.monotonic() + self._patience
        while not self.stopped.is_set():
            if answers(host, port, self.timeout):
                with suppress(LinkLost):
                    self._link = join(host, port, self.interface, self.timeout)
                    introduce()
                    return True
                self.forget()
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"the server at {host}:{port} has not answered for {self._patience:g} s (parallel.patience): start "
                    f"it again with resume=auto, then this {self._who}"
                )
            self.stopped.wait(LOOK)
        return False

    def ask(self, message: Message, patient: bool = False) -> Message:
        """Return the server's answer, for which it may take its time. patient: a signal ends the wait.

        Raises LinkLost, and RunOver if the run has ended.
        """
        if self._link is None:
            raise LinkLost("it was lost before")
        self._link.send(message)
        answer = self._link.receive()
        while answer.kind == "wait":
            if patient and self.stopped.is_set():
                self.forget()
                raise RunOver
            answer = self._link.receive()
        if answer.kind == "finish":
            self.forget()
            raise RunOver
        return answer

    def forget(self) -> None:
        """Give up the link."""
        self._link = None
