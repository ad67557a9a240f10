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
    monkeypatch.setattr(huge_pages, "_ours", False)
    monkeypatch.setattr(huge_pages, "_exported", False)
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


def test_small_pages_are_asked_for_as_well(system, monkeypatch):
    system("[always] madvise never\n")
    huge_pages.turn_off()
    assert os.environ[huge_pages.VARIABLE] == "0"
    assert huge_pages.remark() == ""
    huge_pages.turn_on()  # the next run of a sweep, if nothing has imported torch
    assert os.environ[huge_pages.VARIABLE] == "1"
    monkeypatch.setitem(sys.modules, "torch", object())
    huge_pages.turn_off()  # too late for the third
    assert huge_pages.remark() == "memory: huge pages for large tensors (run.huge_pages=false: small ones)"


@pytest.mark.parametrize("chosen", ["0", "1"])
@pytest.mark.parametrize("turn", ["turn_on", "turn_off"])
def test_what_the_user_set_stays(system, monkeypatch, chosen, turn):
    system("always [madvise] never\n")
    monkeypatch.setenv(huge_pages.VARIABLE, chosen)
    monkeypatch.setattr(huge_pages, "_exported", True)
    getattr(huge_pages, turn)()
    assert os.environ[huge_pages.VARIABLE] == chosen
    assert huge_pages.asked_for() is (chosen == "1")
    told = huge_pages.remark()
    assert ("THP_MEM_ALLOC_ENABLE=1 is exported" in told) is (chosen == "1")
    assert "run.huge_pages=false:" not in told, "it would change nothing"


def test_what_the_system_does_not_give_is_not_told_of(system, monkeypatch):
    system("always madvise [never]\n")
    monkeypatch.setenv(huge_pages.VARIABLE, "1")
    monkeypatch.setattr(huge_pages, "_exported", True)
    assert huge_pages.remark() == ""


@pytest.mark.parametrize("turn", ["turn_on", "turn_off"])
def test_once_torch_is_there_it_is_too_late(system, monkeypatch, turn):
    system("[always] madvise never\n")
    monkeypatch.setitem(sys.modules, "torch", object())
    getattr(huge_pages, turn)()
    assert huge_pages.VARIABLE not in os.environ
    monkeypatch.setenv(huge_pages.VARIABLE, "1")  # by somebody, and perhaps too late as well
    assert huge_pages.remark() == "", "nobody knows what torch has seen"


IMPORTS = """
import sys
{}
from engine import huge_pages
huge_pages.available = lambda: True
print(huge_pages.remark())
"""


@pytest.mark.parametrize(("first", "told"), [("", True), ("import torch", False)])
def test_an_exported_variable_is_known_if_it_was_there_before_torch(monkeypatch, first, told):
    monkeypatch.setenv(huge_pages.VARIABLE, "1")
    done = subprocess.run([sys.executable, "-c", IMPORTS.format(first)], capture_output=True, text=True, check=True)
    assert ("is exported" in done.stdout) is told


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


@pytest.fixture
def in_use(monkeypatch):
    """Let huge pages count as turned on by the engine, on a system that has them."""
    monkeypatch.setenv(huge_pages.VARIABLE, "1")
    monkeypatch.setattr(huge_pages, "_ours", True)
    monkeypatch.setattr(huge_pages, "available", lambda: True)


def test_a_run_says_that_it_uses_them(tmp_path, monkeypatch, in_use):
    for value, told in (("1", True), ("0", False)):
        monkeypatch.setenv(huge_pages.VARIABLE, value)
        run = small_run(tmp_path / value)
        assert any(text.startswith("memory: huge pages for large tensors") for text in run.tables) is told


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["engine", *words])
    main()


QUICK = ["data.size=8", "run.steps=1", "run.batch=64", "out=run"]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_can_be_told_not_to(wanted, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(huge_pages, "turn_on", lambda: asked.append(True))
    monkeypatch.setattr(huge_pages, "turn_off", lambda: asked.append(False))
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, "train", *QUICK, f"run.huge_pages={str(wanted).lower()}")
    assert asked == [wanted]


def test_an_evaluation_says_that_it_uses_them(tmp_path, monkeypatch, capsys, in_use):
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, "train", *QUICK)
    capsys.readouterr()
    command(monkeypatch, "evaluate", "checkpoint=run", "data.size=8")
    assert "engine: memory: huge pages for large tensors" in capsys.readouterr().err
