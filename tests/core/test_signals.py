"""Signals ask, and are answered later; what handled them before comes back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from engine.signals import SIGNALS, StopRequests


@pytest.fixture(autouse=True)
def _handlers():
    """Leave the handlers as they were, whatever a test does."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """Send a signal to this process; Python has handled it when this returns."""
    os.kill(os.getpid(), number)


def fail_while_others_handle(before: dict) -> None:
    assert all(signal.getsignal(number) != before[number] for number in SIGNALS)
    raise ZeroDivisionError


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_is_kept_by_name(name):
    with StopRequests() as stop:
        assert stop.requested is None
        send(getattr(signal, name))
        assert stop.requested == name
    assert stop.requested == name


def test_handlers_come_back_also_after_an_exception():
    seen: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.raises(ZeroDivisionError), StopRequests():
        fail_while_others_handle(before)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    send(signal.SIGTERM)
    send(signal.SIGUSR1)
    assert seen == [signal.SIGUSR1]


def test_the_second_interrupt_is_not_kept_waiting():
    with StopRequests() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.requested == "SIGINT"


def test_an_interrupt_after_another_request_is_not_kept_waiting_either():
    with StopRequests() as stop:
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.requested == "SIGTERM"


def test_other_signals_may_come_as_often_as_they_like():
    with StopRequests() as stop:
        for _ in range(3):
            send(signal.SIGTERM)
            send(signal.SIGUSR1)
        assert stop.requested is not None


def test_outside_the_main_thread_nothing_is_installed():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    found: list[object] = []

    def work() -> None:
        with StopRequests() as stop:
            found.append({number: signal.getsignal(number) for number in SIGNALS})
            found.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before, None]


def test_requests_may_be_used_again_and_nested():
    with StopRequests() as outer:
        with StopRequests() as inner:
            send(signal.SIGUSR1)
        send(signal.SIGTERM)
    assert (inner.requested, outer.requested) == ("SIGUSR1", "SIGTERM")
