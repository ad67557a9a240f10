"""metrics.csv: one row per log or evaluation, for pandas and spreadsheets."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from engine import UsageError, hookimpl

from .writing import writing

if TYPE_CHECKING:
    from engine import Run

NAME = "metrics.csv"
POSITION = ("step", "epoch", "seconds")  # epoch: passes over the data made so far; seconds: of training


class CsvFile:
    """Appends a row at each log and each evaluation, on the disk's side of a kill as soon as it is written.

    The file is wide: a column per tag, empty where a row has no such number. A tag that was not seen before (the
    first evaluation's) rewrites the file under the longer header, through a temporary file, so that it is whole at
    any moment. A resumed run continues the file from the checkpoint's step.
    """

    def __init__(self) -> None:
        self._path = Path()
        self._file: TextIO | None = None
        self._columns: list[str] = []
        self._start = 0.0  # of the clock, such that a resumed run's seconds go on from the last row kept

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Open the file, keeping the rows up to the position."""
        self._path = run.out / NAME
        rows = rows_until(self._path, run.position.step)
        self._columns = list(rows[0]) if rows else list(POSITION)
        self._start = time.monotonic() - (float(rows[-1]["seconds"]) if rows else 0.0)
        with writing(self._path):
            self._rewrite(rows)

    @hookimpl
    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        """Write a row."""
        self._append(run, scalars)

    @hookimpl
    def on_evaluate_end(self, run: Run, scalars: dict[str, float]) -> None:
        """Write a row."""
        self._append(run, scalars)

    @hookimpl
    def on_fit_end(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
            self._file = None

    def _append(self, run: Run, scalars: Mapping[str, float]) -> None:
        with writing(self._path):
            unseen = [tag for tag in scalars if tag not in self._columns]
            if unseen:
                rows = rows_until(self._path, run.position.step)
                self._columns += unseen
                self._rewrite(rows)
            step = run.position.step
            row = {"step": step, "epoch": f"{step / run.steps_per_epoch:.4f}", "seconds": f"{self._seconds():.3f}"}
            assert self._file is not None
            self._file.write(_line([{**row, **scalars}.get(column, "") for column in self._columns]))
            self._file.flush()

    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Replace the file by one with all columns and these rows, at once, and go on appending to it."""
        temporary = self._path.with_suffix(".csv.new")
        with temporary.open("w", newline="") as file:
            file.write(_line(self._columns))
            file.writelines(_line([row.get(column, "") for column in self._columns]) for row in rows)
        os.replace(temporary, self._path)
        if self._file:
            self._file.close()
        self._file = self._path.open("a", newline="")


def rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """Return the file's rows up to ``step``; none if it does not exist.

    A last line without its end, torn by a kill, is no row. Raises UsageError naming a line that is not of ours.
    """
    if not path.exists():
        return []
    text = path.read_text()
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    rows = []
    for row in reader:
        try:
            float(row["seconds"])
            if int(row["step"]) <= step:
                rows.append(row)
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"{path} line {reader.line_num} has no step and seconds: it was altered; move it away"
            ) from None
    return rows


def _line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
