"""Where a run's folder is: given, or new each time; nothing is made for a job that keeps no output."""

from __future__ import annotations

import os
import re

import pytest

from engine.cli import folders
from engine.errors import EXIT_USAGE


def test_a_new_folder_for_each_run(engine, tmp_path, monkeypatch):
    class Clock:
        @staticmethod
        def now():
            from datetime import datetime

            return datetime(2026, 3, 1, 13, 45, 12)

    monkeypatch.setattr(folders, "datetime", Clock)
    outs = [engine("gauge").session.out for _ in range(3)]
    assert [out.relative_to(tmp_path).as_posix() for out in outs] == [
        "runs/2026-03-01/13-45-12", "runs/2026-03-01/13-45-12-2", "runs/2026-03-01/13-45-12-3",
    ]  # fmt: skip
    assert all(out.is_dir() and not any(out.iterdir()) for out in outs)


def test_the_folder_is_dated(engine, tmp_path):
    out = engine("gauge").session.out.relative_to(tmp_path).as_posix()
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d", out)


def test_a_folder_of_ones_own(engine, tmp_path):
    session = engine("gauge", "out=some/where").session
    assert session.out == tmp_path / "some/where"
    assert session.options.out == str(session.out)
    assert session.overrides == []
    assert [p.name for p in tmp_path.iterdir()] == ["some"]


def test_a_mistake_leaves_no_empty_folder(engine, tmp_path):
    engine("gauge", "mode=mistake")
    assert [p for p in tmp_path.rglob("*") if p.name.count("-") > 2] == []
    (tmp_path / "mine").mkdir()
    engine("gauge", "mode=mistake", "out=mine")
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize("argv", [["glance"], ["explain"], ["plugins"], ["glance", "-m", "run.epochs=1,2"]])
def test_other_jobs_leave_nothing_behind(engine, tmp_path, argv):
    assert engine(*argv).code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["gauge"], ["gauge", "-m", "run.epochs=1,2"]])
def test_a_file_in_the_way(engine, tmp_path, sessions, argv):
    (tmp_path / "taken").write_text("mine")
    for out in ("taken", "taken/below"):
        done = engine(*argv, f"out={out}")
        assert done.code == EXIT_USAGE
        assert done.err.startswith(f"engine: {out} cannot hold the run (")
        assert done.err.count("\n") == 1
    assert (tmp_path / "taken").read_text() == "mine"
    assert sessions == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(engine, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = engine("gauge", "out=locked")
    assert done.code == EXIT_USAGE
    assert "locked cannot hold the run (Permission denied)" in done.err
