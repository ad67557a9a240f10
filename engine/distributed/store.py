"""A store that is asked with patience, but not for ever: the process that keeps it may hang or be gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from torch.distributed import Store

Answer = TypeVar("Answer")


class NoAnswer(RuntimeError):
    """Who keeps the store is there, and says nothing: it has been stopped, or its machine has no time."""


def answered(question: Callable[[], Answer], patience: float) -> Answer:
    """Return the answer to one question, asked in a thread that is left to itself if it takes longer: then NoAnswer."""
    answer: Future[Answer] = Future()
    threading.Thread(target=_ask, args=(question, answer), name="engine-question", daemon=True).start()
    return _awaited(answer, patience)


def _ask(question: Callable[[], Answer], answer: Future[Answer]) -> None:
    if answer.set_running_or_notify_cancel():
        try:
            answer.set_result(question())
        except Exception as error:  # it is raised where it is waited for
            answer.set_exception(error)


def _awaited(answer: Future[Answer], patience: float) -> Answer:
    try:
        return answer.result(patience)
    except TimeoutError:
        answer.cancel()  # if it is not being asked yet, it need not be
        raise NoAnswer(f"no answer in {patience:g} s") from None


class PatientStore:
    """A store of torch whose questions raise NoAnswer after ``patience`` seconds; torch itself would wait for ever.

    RuntimeError, as torch raises it, if who keeps the store has gone. They are asked in a thread of their own, one
    after the other, so that a question that is never answered holds up nobody; it ends with the process.
    """

    def __init__(self, store: Store, patience: float) -> None:
        self._store, self._patience = store, patience
        self._questions: SimpleQueue[tuple[Callable[[], object], Future[object]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def set(self, key: str, value: str) -> None:
        """Let everybody see ``value``."""
        self._ask(lambda: self._store.set(key, value))

    def get(self, key: str) -> str | None:
        """Return what was set, or None if nothing was."""
        return self._ask(lambda: self._store.get(key).decode() if self._store.check([key]) else None)

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="engine-store", daemon=True)
            self._thread.start()
        answer: Future[Answer] = Future()
        self._questions.put((question, answer))  # type: ignore[arg-type]
        return _awaited(answer, self._patience)

    def _work(self) -> None:
        while True:
            _ask(*self._questions.get())
