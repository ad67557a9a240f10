"""Worker processes that make a loader's batches, for augmentations that would hold the interpreter's lock.

Each is a new interpreter, which opens the data anew and gets the augmentations as they are. It is started when the
first step is asked for, kept until the loaders' run is over, and ends by itself when this process does, however that
comes about.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from queue import SimpleQueue
from threading import Lock
from typing import Any

import torch

from engine import kept_memory
from engine.batches import Blocks, Maker, Recipe
from engine.chain import Samples
from engine.errors import RunFailed, UsageError
from engine.host_to_device import Layout
from engine.interfaces import Augmentation, Batch, Source
from engine.messages import SharedMemory, packed, receive, send, unpacked
from engine.preparation import Spent
from engine.randomness import Key

PATIENCE = 15.0  # seconds until a worker that does not end is killed

# Signals for the whole process group are the parent's to answer, from the first moment on: it has steps under way.
PROGRAM = """
import json, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
path, given = json.loads(sys.argv[1])
sys.path[:] = path
from engine.worker import work
work(**given)
"""


class Workers:
    """Some processes, each of which makes one step's batches at a time; loaders may share them. Any thread may ask."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise UsageError("data.workers=processes needs data.threads=1 or more, which is how many there are")
        self._count = count
        self._recipes: list[bytes] = []
        self._lock, self._closed = Lock(), False
        self._ending = Lock()  # not the same: whoever asks meanwhile is told at once
        self._workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        weakref.finalize(self, _end, self._workers)

    def add(self, recipe: Recipe) -> int:
        """Return the number of a recipe from now on. Raises UsageError naming an augmentation that cannot be sent."""
        self._recipes.append(_pickled(recipe))
        return len(self._recipes) - 1

    def make(self, number: int, samples: Sequence[Samples], ahead: Sequence[int], pinned: bool) -> Any:
        """Return what the maker of a recipe makes, once a worker is free.

        Raises what it raises, and RunFailed if the worker has ended or is being closed.
        """
        self.start()
        worker = self._idle.get()
        try:
            return worker.ask(number, self._recipes[number], (samples, ahead), pinned)
        finally:
            self._idle.put(worker)  # one that has ended too: whoever waits for a worker is told at once

    def start(self) -> None:
        """Start the processes, unless they have been. Raises RunFailed if they have been closed or none can be made."""
        with self._lock:
            if self._closed:
                raise _closed()
            if self._workers:
                return
            try:
                for _ in range(self._count):
                    self._workers.append(_Worker())
            except OSError as error:
                _end(self._workers)
                raise RunFailed(
                    f"data.workers=processes: a worker process cannot be started ({error.strerror or error}); fewer "
                    "data.threads need fewer of them, and data.workers=threads none"
                ) from error
            for worker in self._workers:
                self._idle.put(worker)

    def close(self) -> None:
        """End the processes, for good; they are gone at the return. Whoever waits for their work gets RunFailed."""
        with self._lock:
            self._closed = True
        with self._ending:
            _end(self._workers)


class Elsewhere(Maker):
    """Makes batches in worker processes, where the source is opened by ``reopen``."""

    def __init__(
        self,
        workers: Workers,
        reopen: Callable[[], Source],
        source: Source,
        augmentations: Mapping[str, Augmentation],
        layout: Layout,
        key: Key | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self._workers, self._layout = workers, layout
        there = replace(layout, device=torch.device("cpu"))
        self._number = workers.add(Recipe(reopen, augmentations, there, key, blocks, source.fingerprint))

    def make(self, samples: Sequence[Samples], ahead: Sequence[int] = ()) -> tuple[list[Batch], Spent]:
        """Return the batches as a worker has made them; the thread sleeps meanwhile."""
        pinned = self._layout.device.type == "cuda"
        batches, spent = self._workers.make(self._number, samples, ahead, pinned)
        return [self._layout.prepare(batch) for batch in batches], spent

    def close(self) -> None:
        """End the worker processes, for all who share them."""
        self._workers.close()


def _closed() -> RunFailed:
    return RunFailed("data.workers=processes: the worker processes have been closed")


class _Worker:
    """One process, its socket and the memory it shares with this one; one thread at a time asks it."""

    def __init__(self) -> None:
        self._busy, self._dismissed = Lock(), False
        with ExitStack() as opened:
            self._file = os.memfd_create("engine-batches")
            opened.callback(os.close, self._file)
            self._channel, theirs = socket.socketpair()
            opened.callback(self._channel.close)
            self._start(theirs)
            opened.pop_all()
        self._memory, self._known = SharedMemory(self._file), set[int]()

    def _start(self, theirs: socket.socket) -> None:
        given = {
            "channel": theirs.fileno(), "memory": self._file, "keep_memory": kept_memory.kept(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }  # fmt: skip
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps([[str(path) for path in sys.path], given])],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._file),
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def ask(self, number: int, recipe: bytes, request: tuple[Any, ...], pinned: bool) -> Any:
        """Return the worker's answer; the recipe goes with the first request for it."""
        with self._busy:  # until then ``end`` leaves socket and memory open
            if self._dismissed:
                raise _closed()
            new = number not in self._known
            message = packed((number, recipe if new else None, *request), self._memory)
            try:
                send(self._channel, message)
                message = receive(self._channel)
            except (EOFError, OSError) as gone:
                raise self._ended() from gone
            except BaseException:  # Ctrl-C, say: the answer to come is that of a request nobody waits for any more
                self.dismiss()
                raise
            answer, error = unpacked(message, self._memory, pinned)
            if error is not None:
                raise error
            self._known.add(number)
            return answer

    def _ended(self) -> RunFailed:
        """Return the error for a process whose end of the socket is closed: it died, or was told to end."""
        if self._dismissed:
            return _closed()
        code = self._wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        what = {
            -signal.SIGKILL: "; if nobody did that, memory was short: fewer data.threads or a smaller data.prefetch "
            "take less of it",
        }.get(code, "; what it has printed may say why, and data.workers=threads does without it")
        return RunFailed(f"data.workers=processes: worker process {self._process.pid} {how}{what}")

    def dismiss(self) -> None:
        """Tell the process to end once it has done what it is doing; whoever waits for its answer waits no more."""
        self._dismissed = True
        try:
            self._channel.shutdown(socket.SHUT_RDWR)
        except OSError:  # it is gone
            return

    def end(self) -> None:
        """Wait until the process has ended, and give back what was shared with it."""
        self._wait()
        with self._busy:
            self._channel.close()
            os.close(self._file)

    def _wait(self) -> int:
        """Return the exit code of a process that is about to end; one that does not is killed."""
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _end(workers: list[_Worker]) -> None:
    """End processes, all at the same time."""
    for worker in workers:
        worker.dismiss()
    while workers:
        workers.pop().end()


class _RecipePickler(pickle.Pickler):
    """Refuses sources: what they hold open means nothing in another process."""

    def reducer_override(self, thing: Any) -> Any:
        """Raise PicklingError for a source, leave all else as it is."""
        if Source in type(thing).__mro__:
            raise pickle.PicklingError("it keeps a data source, instead of what it has learnt from it")
        return NotImplemented


def _pickled(recipe: Recipe) -> bytes:
    try:
        return _dump(recipe)
    except Exception as error:  # whatever pickle and foreign classes raise
        for name, augmentation in recipe.augmentations.items():
            _require_picklable(f"augment.{name}", augmentation)
        _require_picklable("data", recipe.reopen)
        raise error


def _require_picklable(name: str, thing: Any) -> None:
    try:
        _dump(thing)
    except Exception as error:  # as above
        reason = " ".join(str(error).split())
        raise UsageError(
            f"data.workers=processes: {name} cannot be sent to a worker process ({reason}); use data.workers=threads"
        ) from error


def _dump(thing: Any) -> bytes:
    file = BytesIO()
    _RecipePickler(file, protocol=5).dump(thing)
    return file.getvalue()
