"""Rhythms and times as people write them."""

from __future__ import annotations

import pytest

from engine import UsageError
from engine.durations import Every, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 epoch", Every(epochs=1)),
        ("2 epochs", Every(epochs=2)),
        ("3epochs", Every(epochs=3)),
        ("  10 epochs ", Every(epochs=10)),
        ("500 steps", Every(steps=500)),
        ("1 step", Every(steps=1)),
        ("007", Every(steps=7)),
        ("never", Every()),
        (" never ", Every()),
    ],
)
def test_rhythms_are_read(text, expected):
    assert Every.parse(text, "save.every") == expected
    assert expected.never == (text.strip() == "never")


@pytest.mark.parametrize(
    "text", ["", "0", "0 epochs", "-1 steps", "1.5 epochs", "epoch", "every 2 epochs", "2 weeks", "Never", "2 steps 3"]
)
def test_an_unreadable_rhythm_is_answered_with_its_option(text):
    with pytest.raises(UsageError) as caught:
        Every.parse(text, "run.evaluate_every")
    assert str(caught.value) == f"run.evaluate_every={text}: write '2 epochs', '500 steps' or never"


def test_steps_are_due_at_their_multiples_and_epochs_only_at_an_epochs_end():
    by_steps = Every.parse("3 steps", "x")
    assert [step for step in range(1, 11) if by_steps.due(step, None)] == [3, 6, 9]
    assert by_steps.due(3, 1), "an epoch's end makes no difference to steps"
    by_epochs = Every.parse("2 epochs", "x")
    ends = {step: step // 5 if step % 5 == 0 else None for step in range(1, 31)}  # epochs of five steps
    assert [step for step, done in ends.items() if by_epochs.due(step, done)] == [10, 20, 30]
    assert not any(Every().due(step, done) for step, done in ends.items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", 90.0),
        ("90", 90.0),
        ("1.5", 1.5),
        ("30m", 1800.0),
        ("8h", 28800.0),
        ("1h30m", 5400.0),
        ("1h 30m 15s", 5415.0),
        ("100m", 6000.0),
        ("0s", 0.0),
    ],
)
def test_times_are_read(text, expected):
    assert seconds(text, "run.max_time") == expected


@pytest.mark.parametrize("text", ["", " ", "h", "1d", "30m1h", "1m30", "-5s", "1.5h", "1e3", "inf", "90S"])
def test_an_unreadable_time_is_answered_with_its_option(text):
    with pytest.raises(UsageError) as caught:
        seconds(text, "run.max_time")
    assert str(caught.value) == f"run.max_time={text}: write a time such as 90s, 30m, 8h or 1h30m"
