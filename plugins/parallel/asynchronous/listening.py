"""The server's ears: one thread takes up workers that join, and each worker has a thread that listens to it alone.

What workers say goes into one queue in the order in which it came; the training thread answers. So nothing but that
queue is shared between threads, and a worker that hangs holds up its own thread only.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from engine import UsageError
from engine.distributed.joining import LOOPBACK, address_of

from .links import Link, LinkLost, Message, Packed, interface_to

BEATS = 8  # signs of life that a worker gets within the time in which it must, while it waits for an answer
LONGEST = 1.0  # seconds between two of them
POLL = 0.02  # seconds between two looks for workers that join
LEAVE = 10.0  # seconds that workers get to hear that the run is over
BACKLOG = 1024
CONNECTING = 5.0  # seconds that a connection may take where somebody listens

WAIT, FINISH = Message("wait"), Message("finish")


@dataclass(eq=False)
class Member:
    """A worker as the server sees it: what it is owed, and what is known of it. number: since the run began."""

    number: int
    answers: queue.SimpleQueue[Message | Packed] = field(default_factory=queue.SimpleQueue)
    slot: int = -1  # the lowest that was free when it joined
    name: str = ""  # machine and process
    pushes: int = 0
    weights: list[Tensor] | None = None  # that it has, where they are needed

    def answer(self, message: Message | Packed) -> None:
        """Tell the worker; it has asked."""
        self.answers.put(message)


@dataclass(frozen=True)
class Event:
    """Something that the training thread has to do with: a worker's message, or that its link is lost.

    Without a member: a signal has come.
    """

    member: Member | None = None
    message: Message | None = None
    lost: str = ""


class Listening:
    """Takes up workers at an address until it is closed. ``tell`` gets every event, in whatever thread.

    Raises UsageError if the port is in use or the address is not one of this machine's.
    """

    def __init__(self, address: str, port: int, interface: str, timeout: float, tell: Callable[[Event], None]) -> None:
        self._interface, self._timeout, self._tell = interface_to(address, interface), timeout, tell
        self._over = threading.Event()
        # A machine's name may mean a loopback address to itself and another to others: both are to find it.
        bound = address if self._interface == LOOPBACK else ""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((bound, port))
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            raise UsageError(
                f"parallel.server={address}:{port} cannot be listened at ({error.strerror}): choose another port, "
                "or end what uses it"
            ) from error
        self.address, self.port = address, int(listening.getsockname()[1])
        self._store: Any = dist.TCPStore(
            address, self.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout),
            master_listen_fd=listening.detach(),
        )  # fmt: skip
        self._threads: list[threading.Thread] = []
        self._members: list[Member] = []
        self._accepting = threading.Thread(target=self._accept, name="engine-joins", daemon=True)
        self._accepting.start()

    @property
    def place(self) -> str:
        """Where workers find it, in words."""
        return f"{self.address}:{self.port} ({self._interface}, {address_of(self._interface)})"

    def close(self) -> None:
        """Tell every worker that the run is over, once it asks; take up no more."""
        self._over.set()
        self._accepting.join()
        for member in self._members:
            member.answer(FINISH)
        patience = LEAVE
        for thread in self._threads:
            thread.join(max(0.0, patience) / max(1, len(self._threads)))

    def _accept(self) -> None:
        store = self._store.clone()
        taken = 0
        while not self._over.wait(POLL):
            for number in range(taken + 1, store.add("joined", 0) + 1):
                member = Member(number)
                self._members.append(member)
                thread = threading.Thread(
                    target=self._listen, args=(member, store.clone()), name=f"engine-worker-{number}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
                taken = number

    def _listen(self, member: Member, store: dist.Store) -> None:
        try:
            link = Link(dist.PrefixStore(f"link/{member.number}", store), 0, self._interface, self._timeout)
            answer: Message | Packed = WAIT
            while answer is not FINISH:
                self._tell(Event(member, link.receive()))
                while (answer := self._next(member)) is WAIT:
                    link.send(WAIT)
                link.send(answer)
        except LinkLost as lost:
            self._tell(Event(member, lost=str(lost)))

    def _next(self, member: Member) -> Message | Packed:
        try:
            return member.answers.get(timeout=min(LONGEST, self._timeout / BEATS))
        except queue.Empty:
            return WAIT


def join(address: str, port: int, interface: str, timeout: float) -> Link:
    """Return a worker's link to the server at an address. Raises LinkLost if it is not there."""
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=min(timeout, CONNECTING)))
        store.set_timeout(timedelta(seconds=timeout))
        number = store.add("joined", 1)
    except RuntimeError as error:
        raise LinkLost(str(error).split("\n")[0]) from error
    return Link(dist.PrefixStore(f"link/{number}", store), 1, interface_to(address, interface), timeout)
