"""Huge pages: asked for where the system has them, before torch allocates, unless somebody says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from engine import huge_pages
from engine.cli import main
from engine.testing import small_run


@pytest.fixture
def system(monkeypatch, tmp_path):
    """Return a function that sets what the system's file says; torch counts as not yet imported."""
    monkeypatch.setattr(huge_pages, "SYSTEM", tmp_path / "enabled")
    monkeypatch.delenv(huge_pages.VARIABLE, raising=False)
    monkeypatch.delitem(sys.modules, "torch")
    return (tmp_path / "enabled").write_text


@pytest.mark.parametrize(
    ("content", "on"),
    [
        ("always [madvise] never\n", True),
        ("[always] madvise never\n", True),
        ("always madvise [never]\n", False),
        ("", False),
    ],
)
def test_they_are_asked_for_where_the_system_gives_them(system, content, on):
    system(content)
    huge_pages.turn_on()
    assert huge_pages.available() is on
    assert os.environ.get(huge_pages.VARIABLE) == ("1" if on else None)
    assert huge_pages.asked_for() is on
    assert huge_pages.remark().startswith("memory: huge pages") is on
    assert ("run.huge_pages=false" in huge_pages.remark()) is on


def test_a_system_without_the_file_has_none(system):
    huge_pages.turn_on()
    assert not huge_pages.available()
    assert huge_pages.VARIABLE not in os.environ


@pytest.mark.parametrize("chosen", ["0", "1"])
def test_what_the_user_set_stays(system, monkeypatch, chosen):
    system("always [madvise] never\n")
    monkeypatch.setenv(huge_pages.VARIABLE, chosen)
    huge_pages.turn_on()
    assert os.environ[huge_pages.VARIABLE] == chosen
    assert huge_pages.asked_for() is (chosen == "1")


def test_once_torch_is_there_it_is_too_late(system, monkeypatch):
    system("[always] madvise never\n")
    monkeypatch.setitem(sys.modules, "torch", object())
    huge_pages.turn_on()
    assert huge_pages.VARIABLE not in os.environ


STOP = """
import sys
from engine import huge_pages
from engine.cli import main

def turn_on():
    print("with torch" if "torch" in sys.modules else "without torch")
    sys.exit()

huge_pages.turn_on = turn_on
sys.argv = ["engine", "train", "out=run"]
main()
"""


def test_a_command_turns_them_on_before_torch_is_imported(tmp_path):
    """In a process of its own, where nothing has imported torch yet."""
    done = subprocess.run([sys.executable, "-c", STOP], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "without torch\n", done.stderr


def test_a_run_says_that_it_uses_them(tmp_path, monkeypatch):
    for value, told in (("1", True), ("0", False)):
        monkeypatch.setenv(huge_pages.VARIABLE, value)
        run = small_run(tmp_path / value)
        assert any(text.startswith("memory: huge pages for large tensors") for text in run.tables) is told


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_can_be_told_not_to(wanted, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(huge_pages, "turn_on", lambda: asked.append(True))
    monkeypatch.chdir(tmp_path)
    words = ["train", "data.size=8", "run.steps=1", "run.batch=64", f"run.huge_pages={str(wanted).lower()}"]
    monkeypatch.setattr(sys, "argv", ["engine", *words, "out=run"])
    main()
    assert asked == [True] * wanted
