"""Starts servers and workers on this machine, each by itself, and starts again the one that died: nobody else stops.

A worker that dies is started again and rejoins. A server that dies is started again and goes on from its newest
checkpoint, while the workers wait for it; if another of several servers dies, so is the one that leads. A mistake of
the user, a defect, or a stop that was asked for ends them all.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from engine import RunFailed
from engine.distributed.launching import payload_of, raise_what_was_said, said_in
from engine.errors import EXIT_CRASHED, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE, Stopped
from engine.session import Session
from engine.signals import SIGNALS

from .words import say

AT_END = 15.0  # seconds that workers get to end once the server has


@dataclass(eq=False)
class Child:
    """A process that was started: the server, or a worker."""

    role: str  # server (which leads), shard (another server) or worker
    folder: Path  # where it says how it ended
    process: subprocess.Popen[bytes]
    restart: int = 0  # how often it had been started before
    is_known_dead: bool = False  # of a shard: whether the server that leads has been started again for it
    watched: int = field(init=False)  # readable once it has ended

    def __post_init__(self) -> None:
        self.watched = os.pidfd_open(self.process.pid)

    @property
    def name(self) -> str:
        """How it is called where people are told of it."""
        if self.role == "server":
            return "the server"
        return f"{'the server of a part,' if self.role == 'shard' else 'worker'} process {self.process.pid}"

    def end(self) -> int:
        """Return its exit code, once it has ended; below 0: minus the signal that ended it."""
        os.close(self.watched)
        return self.process.wait()


def supervise(session: Session) -> None:
    """Do the session's job with ``parallel.processes`` workers and a server on this machine.

    Raises what one process would have raised: UsageError, RunFailed, Stopped.
    """
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        Supervision(session, Path(folder)).carry_out()


class Supervision:
    """The processes of one run."""

    def __init__(self, session: Session, folder: Path) -> None:
        parallel: Any = session.options.parallel
        self._session, self._folder, self._parallel = session, folder, parallel
        self._address = parallel.server or f"127.0.0.1:{free_port()}"
        self._children: dict[int, Child] = {}  # by descriptor
        self._started = 0
        self._server: Child | None = None
        self._asked: str | None = None  # the signal by which somebody asked to stop
        self._ended_well = False
        self._doomed = False  # whether the server that leads was killed because another had died

    def carry_out(self) -> None:
        """Start all, and see to them until the server has ended for good."""
        try:
            with self._passing_on():
                self._server = self._start("server", 0)
                for _ in range(self._parallel.servers - 1):
                    self._start("shard", 0)
                for _ in range(self._parallel.processes):
                    self._start("worker", 0)
                while self._server is not None:
                    ended = wait(list(self._children))
                    for child in [child for child in self._children.values() if child.watched in ended]:
                        self._take_up(self._children.pop(child.watched))
        finally:
            self._end_all()

    def _start(self, role: str, restart: int) -> Child:
        self._started += 1
        folder = self._folder / str(self._started)
        folder.mkdir()
        options = replace(
            self._session.options, parallel=replace(self._parallel, role=role, server=self._address),
            resume="auto" if restart and role == "server" else self._session.options.resume,
        )  # fmt: skip
        payload = folder / "payload"
        payload.write_bytes(payload_of(replace(self._session, options=options), folder, restart))
        command = [sys.executable, "-m", "engine.distributed.worker", str(payload), str(os.getpid())]
        # A session of their own: Ctrl-C in a terminal asks us alone, and the server then ends the run.
        process = subprocess.Popen(command, env=self._environment(), start_new_session=True)
        child = Child(role, folder, process, restart)
        self._children[child.watched] = child
        return child

    def _environment(self) -> dict[str, str]:
        """Return the variables of a process: it computes with its share of the cores, and gloo is quiet."""
        workers, given = max(1, self._parallel.processes), os.environ.get("OMP_NUM_THREADS")
        share = str(max(1, len(os.sched_getaffinity(0)) // workers))
        threads = str(self._parallel.threads) if self._parallel.threads else given or share
        ours = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR", "RANK": str(self._started)}
        return os.environ | ours

    def _take_up(self, child: Child) -> None:
        """Do what is to be done when a process has ended."""
        code = child.end()
        said = said_in(child.folder)
        if child is self._server:
            self._server = None
            self._ended_well = code == EXIT_DONE
            if not self._ended_well:
                # That it has lost another server is no reason to end: both start again.
                excused = self._doomed or (code == EXIT_FAILED and self._has_lost_a_shard())
                self._doomed = False
                self._restart_server(child, code, bool(said) and not excused)
        elif code in (EXIT_USAGE, EXIT_CRASHED) and said:
            self._end_server()
            self._raise(child, code)
        elif child.role == "shard":
            if code != EXIT_DONE and not self._asked:
                self._restart_shard(child, code)
        elif code != EXIT_DONE and not self._asked:
            self._restart_worker(child, code)

    def _restart_server(self, child: Child, code: int, said: bool) -> None:
        if said:
            self._raise(child, code)
        if self._asked:
            raise Stopped(
                f"stopped by {self._asked} without a new checkpoint; engine train out={self._session.out} resume=auto "
                "goes on with the newest, or starts again"
            )
        if child.restart >= self._parallel.restarts:
            raise RunFailed(
                f"the server {how(code)}, after {child.restart} restarts (parallel.restarts); engine train "
                f"resume={self._session.out} goes on"
            )
        say(f"the server {how(code)}; it starts again from the newest checkpoint, workers wait for it")
        self._server = self._start(child.role, child.restart + 1)

    def _has_lost_a_shard(self) -> bool:
        dead = [each for each in self._children.values() if each.role == "shard" and each.process.poll() is not None]
        for each in dead:
            each.is_known_dead = True
        return bool(dead)

    def _restart_shard(self, child: Child, code: int) -> None:
        """Start a server of a part again, and the one that leads, from whose checkpoint it gets its part."""
        if child.restart >= self._parallel.restarts:
            raise RunFailed(
                f"{child.name} {how(code)}, after {child.restart} restarts (parallel.restarts); engine train "
                f"resume={self._session.out} goes on"
            )
        say(f"{child.name} {how(code)}; it starts again")
        self._start(child.role, child.restart + 1)
        if self._server is not None and not child.is_known_dead:
            self._doomed = True
            self._server.process.kill()

    def _restart_worker(self, child: Child, code: int) -> None:
        if child.restart < self._parallel.restarts:
            say(f"{child.name} {how(code)}; it starts again, the others go on")
            self._start(child.role, child.restart + 1)
            return
        say(f"{child.name} {how(code)}, after {child.restart} restarts (parallel.restarts); the others go on")
        if not any(other.role == "worker" for other in self._children.values()):
            self._end_server()
            raise RunFailed(f"no worker is left; engine train resume={self._session.out} goes on")

    def _raise(self, child: Child, code: int) -> None:
        """Raise what a process said when it ended."""
        raise_what_was_said(child.folder)
        (text,) = (each["text"] for each in said_in(child.folder).values())
        raise RunFailed(f"{child.name} crashed ({text}): its traceback is above")

    def _end_server(self) -> None:
        """Have the server save and end."""
        if self._server is not None:
            self._server.process.terminate()
            try:
                self._server.process.wait(self._parallel.shutdown)
            except subprocess.TimeoutExpired:
                self._server.process.kill()

    def _end_all(self) -> None:
        """See that no process is left. From a server that has ended well, workers have heard that the run is over."""
        for child in self._children.values() if not self._ended_well else ():
            child.process.terminate()
        for child in self._children.values():
            try:
                child.process.wait(AT_END)
            except subprocess.TimeoutExpired:
                child.process.kill()
            child.end()

    @contextmanager
    def _passing_on(self) -> Iterator[None]:
        """Within ``with``, signals that ask to stop are passed on to the server, whose end ends all."""

        def receive(number: int, frame: FrameType | None) -> None:
            self._asked = signal.Signals(number).name
            if self._server is not None:
                self._server.process.send_signal(number)

        before = {number: signal.signal(number, receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def how(code: int) -> str:
    """Return in words how a process ended."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    meanings = {EXIT_STOPPED: "was asked to stop", EXIT_FAILED: "gave up", EXIT_USAGE: "was refused"}
    return meanings.get(code, f"ended with exit code {code}")


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
