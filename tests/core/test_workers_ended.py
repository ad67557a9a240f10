"""Workers that are closed, killed or interrupted while they are asked: a clear error or an end, never a hang."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from loading_parts import Held, Noise, Spin

from engine import Key, RunFailed
from engine import workers as parent
from engine.batches import Recipe
from engine.loader import Layout, Loader, Position
from engine.messages import SharedMemory, packed, receive, send
from engine.workers import Workers

LAYOUT = Layout(torch.device("cpu"))
CLOSED = r"^data\.workers=processes: the worker processes have been closed$"
SOON = 100.0  # seconds, after which something hangs


class Far:
    """Stands for a worker process: the test has its end of the socket, and says what it answers and when it ends."""

    made: list[Far]

    def __init__(self, *_: Any, pass_fds: tuple[int, int], **__: Any) -> None:
        self.socket = socket.socket(fileno=os.dup(pass_fds[0]))
        self.memory = SharedMemory(os.dup(pass_fds[1]))
        self.socket.settimeout(SOON)
        self.pid, self.waited, self.ended = 1, threading.Event(), threading.Event()
        self.made.append(self)

    def wait(self, timeout: float | None = None) -> int:
        self.waited.set()
        if not self.ended.wait(SOON):
            raise subprocess.TimeoutExpired("far", SOON)
        return 0

    def kill(self) -> None:
        pytest.fail("it was killed while it was about to end")

    def answer(self, thing: Any) -> None:
        send(self.socket, packed((thing, None), self.memory))

    def end(self) -> None:
        self.socket.close()
        self.ended.set()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Far]]:
    """Have ``Far`` stand for worker processes; return a function that gives the first one."""
    Far.made = []
    monkeypatch.setattr(parent.subprocess, "Popen", Far)
    yield lambda: Far.made[0]
    for one in Far.made:
        one.end()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def workers_of(count: int) -> Workers:
    workers = Workers(count)
    workers.add(Recipe(Noise, {}, LAYOUT, None, None, ""))
    return workers


def ask(workers: Workers) -> Any:
    return workers.make(0, [], [], False)


def test_all_who_ask_are_told_when_the_workers_are_closed(far, pool):
    """One thread waits for an answer, two for the worker; none of them waits until the process has ended."""
    workers = workers_of(1)
    workers.start()
    asked = [pool.submit(ask, workers)]
    receive(far().socket)
    asked += [pool.submit(ask, workers) for _ in range(2)]
    closing = pool.submit(workers.close)
    for future in asked:
        with pytest.raises(RunFailed, match=CLOSED):
            future.result(SOON)
    with pytest.raises(RunFailed, match=CLOSED):  # and those who ask while it is still ending
        ask(workers)
    assert not closing.done()
    far().end()
    closing.result(SOON)
    workers.close()
    with pytest.raises(RunFailed, match=CLOSED):
        ask(workers)


def test_closing_from_several_threads_ends_each_process_once(far, pool):
    workers = workers_of(3)
    workers.start()
    assert len(Far.made) == 3
    closing = [pool.submit(workers.close) for _ in range(3)]
    for one in Far.made:
        assert one.socket.recv(1) == b""  # told to end
        one.end()
    for future in closing:
        future.result(SOON)
    workers.close()


def test_an_answer_that_has_come_is_still_given_while_the_workers_are_closed(far, pool, monkeypatch):
    """Its memory is not given back under the thread that copies out of it."""
    copying, copy, real = threading.Event(), threading.Event(), parent.unpacked

    def unpacked(*given: Any) -> Any:
        copying.set()
        assert copy.wait(SOON)
        return real(*given)

    monkeypatch.setattr(parent, "unpacked", unpacked)
    workers, images = workers_of(1), torch.arange(1000.0)
    workers.start()
    asked = pool.submit(ask, workers)
    receive(far().socket)
    far().answer(images)
    assert copying.wait(SOON)
    closing = pool.submit(workers.close)
    assert far().waited.wait(SOON)
    far().end()
    copy.set()
    assert torch.equal(asked.result(SOON), images)
    closing.result(SOON)


def test_an_answer_that_nobody_waited_for_is_never_given_to_the_next(far, pool, monkeypatch):
    """Ctrl-C in the thread that asks, say: what comes then belongs to another request."""

    def interrupted(channel: socket.socket) -> bytes:
        raise KeyboardInterrupt

    workers = workers_of(1)
    monkeypatch.setattr(parent, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(workers)
    monkeypatch.undo()
    with pytest.raises(RunFailed, match=CLOSED):
        ask(workers)
    far().end()
    workers.close()


def test_processes_that_cannot_be_started_are_one_line_and_leave_nothing(monkeypatch):
    before = len(os.listdir("/proc/self/fd"))

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(parent.subprocess, "Popen", refused)
    workers = workers_of(2)
    for _ in range(2):
        with pytest.raises(RunFailed, match=r"cannot be started \(Resource temporarily unavailable\); fewer"):
            ask(workers)
    workers.close()
    assert len(os.listdir("/proc/self/fd")) == before


class Gate:
    """Two pipes by name: what a ``Held`` augmentation tells when it begins, and what it waits for."""

    def __init__(self, folder: Path) -> None:
        os.mkfifo(folder / "begun")
        os.mkfifo(folder / "go")
        self.held = Held(folder)
        self._begun, self._go = (os.open(folder / name, os.O_RDWR) for name in ("begun", "go"))

    def begun(self) -> int:
        """Return the process that has begun, once one has."""
        assert select.select([self._begun], [], [], SOON)[0], "no batch was begun"
        return int(os.read(self._begun, 8))

    def go(self, times: int) -> None:
        os.write(self._go, b"." * times)

    def close(self) -> None:
        os.close(self._begun)
        os.close(self._go)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.close()


def loader(named: dict, workers: Workers | None = None, threads: int = 0) -> Loader:
    given = {"batch": 8, "layout": LAYOUT, "threads": threads, "prefetch": 4}
    return Loader(Noise(), named, Key.of(5), **given, workers=workers, reopen=Noise)


def test_a_process_killed_while_it_is_asked(gate, pool):
    run = loader({"held": gate.held}, Workers(1), threads=2)
    try:
        stream = run.steps(Position())
        asked = pool.submit(next, stream)
        os.kill(gate.begun(), signal.SIGKILL)
        with pytest.raises(RunFailed, match=r"worker process \d+ was ended by SIGKILL; if nobody did that, memory"):
            asked.result(SOON)
    finally:
        run.close()


def test_a_loader_closed_in_the_middle_of_an_epoch_and_opened_again(gate, pool):
    """The first is closed while a process is at work; the second goes on where it was, until its process is killed."""
    expected = list(islice(loader({"spin": Spin()}).steps(Position()), 5))
    named = {"spin": Spin(), "held": gate.held}
    run = loader(named, Workers(1), threads=1)  # a second thread could have its step made before an earlier one
    stream = run.steps(Position())
    gate.go(2)
    given = [next(stream), next(stream)]
    for _ in range(3):
        gate.begun()
    closing = pool.submit(run.close)
    with pytest.raises(RunFailed, match=CLOSED):
        next(stream)
    gate.go(1)
    closing.result(SOON)
    run.close()
    run = loader(named, Workers(1))
    try:
        stream = run.steps(given[-1].end)
        gate.go(3)
        given += [next(stream) for _ in range(3)]
        for mine, step in zip(given, expected, strict=True):
            assert torch.equal(mine.batches[0].images, step.batches[0].images)
            assert mine.end == step.end
        os.kill(gate.begun(), signal.SIGKILL)  # idle
        with pytest.raises(RunFailed, match=r"worker process \d+ was ended by SIGKILL"):
            next(stream)
    finally:
        run.close()
