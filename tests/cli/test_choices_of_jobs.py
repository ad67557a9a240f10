"""A job may choose a component where the command does not: in commands, in help and in completion."""

from __future__ import annotations

import pytest

from engine.cli.arguments import job_of
from engine.cli.completion import candidates
from engine.cli.presets import Presets


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["verify"], ["data=store"]),
        (["verify", "data.root=x", "threads=2"], ["data=store", "data.root=x", "job.threads=2"]),
        (["verify", "data=digits"], ["data=digits"]),
        (["job=verify", "data.root=x"], ["data=store", "data.root=x"]),
        (["train", "data.size=8"], ["data.size=8"]),
    ],
)
def test_the_command_wins(registry, words, expected):
    assert job_of(words, registry, "train")[1] == expected


def test_help_and_completion_know_its_options(engine, registry):
    assert "data=store\n" in engine("verify", "--help").out
    assert "data.root=" in candidates("engine verify data.ro", registry, Presets(registry))
