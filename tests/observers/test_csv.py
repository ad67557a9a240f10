"""metrics.csv as Python's csv module reads it."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from engine import RunFailed, UsageError
from engine.plugins.observers import Csv


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], tag: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[tag])) for row in rows if row.get(tag)]


def test_a_row_for_each_log_and_each_evaluation(make_run):
    run = make_run()
    run.play(Csv().build())
    rows = read(run.out)
    assert [int(row["step"]) for row in rows] == [2, 3, 4, 6, 6]
    assert list(rows[0])[:3] == ["step", "epoch", "seconds"]
    assert column(rows, "train/loss") == [(2, 0.5), (4, 0.25), (6, 1 / 6)]  # to the last bit
    assert column(rows, "test/accuracy") == [(3, 0.87), (6, 0.84)]
    assert [row["epoch"] for row in rows] == ["0.6667", "1.0000", "1.3333", "2.0000", "2.0000"]
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert all(None not in row and None not in row.values() for row in rows)  # every row has every column


def test_a_row_is_in_the_file_as_soon_as_it_is_written(make_run):
    run = make_run()
    run.play(Csv().build(), until=2, ends=None)
    assert column(read(run.out), "train/loss") == [(2, 0.5)]


def test_rows_survive_kill_9(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from engine.plugins.observers.csv_file import CsvFile
run = SimpleNamespace(out=Path(sys.argv[1]), position=SimpleNamespace(step=0), steps_per_epoch=10)
observer = CsvFile()
observer.on_fit_start(run=run)
for run.position.step in (1, 2, 3):
    observer.on_log(run=run, scalars={"train/loss": run.position.step / 4})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert done.returncode == -9
    assert column(read(tmp_path), "train/loss") == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_a_resumed_run_drops_what_came_after_the_checkpoint_and_a_torn_line(make_run):
    killed = make_run()
    killed.play(Csv().build(), until=5, ends=None)
    path = killed.out / "metrics.csv"
    path.write_text(path.read_text() + "5,1.6667,12.3")  # a kill in the middle of a row
    seconds = float(read(killed.out)[1]["seconds"])

    resumed = make_run(step=3)
    resumed.play(Csv().build(), until=6)
    rows = read(resumed.out)
    assert [int(row["step"]) for row in rows] == [2, 3, 4, 6, 6]
    assert column(rows, "test/accuracy") == [(3, 0.87), (6, 0.84)]
    assert float(rows[2]["seconds"]) >= seconds  # time goes on from the last row kept
    assert sorted(p.name for p in resumed.out.iterdir()) == ["metrics.csv"]


@pytest.mark.parametrize("torn", ["", "step,epo", "step,epoch,seconds\n"])
def test_a_file_killed_at_its_beginning_is_begun_again(make_run, torn):
    run = make_run()
    (run.out / "metrics.csv").write_text(torn)
    run.play(Csv().build())
    assert column(read(run.out), "test/accuracy") == [(3, 0.87), (6, 0.84)]


def test_a_foreign_file_is_refused_and_left_alone(make_run):
    run = make_run()
    path = run.out / "metrics.csv"
    path.write_text("name,value\nx,1\n")
    with pytest.raises(UsageError, match=r"metrics.csv line 2 has no step and seconds.*move it away"):
        run.play(Csv().build())
    assert path.read_text() == "name,value\nx,1\n"


def test_a_folder_that_vanished_is_named(make_run):
    run = make_run()
    run.out.rmdir()
    with pytest.raises(RunFailed, match=r"metrics.csv cannot be written \(No such file"):
        run.play(Csv().build())
