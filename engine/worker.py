"""The program of a worker process: it makes batches as it is asked to, and ends when its parent does.

It is started by ``engine.workers`` as a new interpreter, never forked: a fork of a process with threads may inherit a
lock that nobody will release.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
import traceback
from queue import SimpleQueue
from typing import Any

import torch

from engine import kept_memory
from engine.batches import Batches, Recipe
from engine.errors import EngineError, UsageError
from engine.messages import SharedMemory, packed, receive, send, unpacked

GRACE = 5.0  # seconds that a step under way may still take once the parent is gone


def work(channel: int, memory: int, keep_memory: bool, deterministic: bool) -> None:
    """Answer the requests that come through a socket until its other end is closed. channel, memory: descriptors."""
    torch.set_num_threads(1)  # there are as many workers as threads are wanted
    torch.use_deterministic_algorithms(deterministic)
    if keep_memory:
        kept_memory.keep()
    parent, shared = socket.socket(fileno=channel), SharedMemory(memory)
    requests: SimpleQueue[bytes | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(parent, requests), daemon=True).start()
    makers: dict[int, Batches] = {}
    while (request := requests.get()) is not None:
        try:
            answer = packed((_made(makers, *unpacked(request, shared, pinned=False)), None), shared)
        except BaseException as error:  # the parent raises it, whatever it is
            answer = packed((None, _portable(error)), shared)
        try:
            send(parent, answer)
        except OSError:  # the parent is gone
            break
    for maker in makers.values():
        maker.close()


def _listen(parent: socket.socket, requests: SimpleQueue[bytes | None]) -> None:
    """Pass requests on; see to it that the process ends soon after its parent, whatever it is doing."""
    try:
        while True:
            requests.put(receive(parent))
    except (EOFError, OSError):  # the parent is gone, or wants no more
        pass
    finally:
        requests.put(None)
    time.sleep(GRACE)
    os._exit(1)


def _made(makers: dict[int, Batches], number: int, recipe: bytes | None, *request: Any) -> Any:
    """Return what a recipe's maker makes; ``recipe`` comes with the first request for its number."""
    if recipe is not None:
        makers[number] = _understood(recipe).maker()
    return makers[number].make(*request)


def _understood(recipe: bytes) -> Recipe:
    try:
        found = pickle.loads(recipe)
    except Exception as error:  # foreign code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"data.workers=processes: a worker process cannot rebuild the data or an augmentation ({reason}); define "
            "its class in a module that can be imported, or use data.workers=threads"
        ) from error
    assert isinstance(found, Recipe)
    return found


def _portable(error: BaseException) -> BaseException:
    """Return an exception that can be pickled; a defect's has a note with the traceback."""
    if isinstance(error, EngineError):
        return type(error)(str(error))
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of a class that was not made for it
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker process of the loader:\n{text}")
    return error
