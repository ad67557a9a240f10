"""How a check says which promise was broken, and by whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BrokenPromise(AssertionError):
    """A component does not do what its interface promises; the message names the promise and how it was broken."""


class Promises:
    """The promises of one component, for messages that name it."""

    def __init__(self, component: object) -> None:
        self.name = type(component).__name__

    def expect(self, kept: bool, promise: str, how: str) -> None:
        """Raise BrokenPromise unless ``kept``; ``how`` says what was seen instead."""
        if not kept:
            raise BrokenPromise(f"{self.name} breaks a promise: {promise}; {how}")

    @contextmanager
    def works(self, promise: str) -> Iterator[None]:
        """Within ``with``, any exception but a BrokenPromise breaks ``promise``."""
        try:
            yield
        except BrokenPromise:
            raise
        except Exception as error:
            raise BrokenPromise(f"{self.name} breaks a promise: {promise}; {type(error).__name__}: {error}") from error
