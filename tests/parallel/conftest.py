"""Fixtures around commands that train in several processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The root, too: what tests call in other processes is found by the name that pytest gives to their module.
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
from commands import ENGINE, Command, two  # noqa: E402 - found by the path above


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Return a function that starts ``engine train`` with a tiny run of two processes; it is ended with the test."""
    begun: list[Command] = []

    def begin(*words: str, by: Sequence[str] = ENGINE, **variables: str) -> Command:
        begun.append(Command([*by, *words], tmp_path, variables))
        return begun[-1]

    yield begin
    for command in begun:
        command.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, str]:
    """Return a tiny run of two processes to its end: its words, its folder, and what it told."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = two("run.steps=150", "save.every=10 steps", "optim.lr=0.02")
    command = Command([*ENGINE, *words, "out=run"], folder, {})
    assert command.end() == 0, command.told
    return words, folder / "run", command.told
