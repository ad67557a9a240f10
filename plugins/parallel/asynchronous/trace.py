"""The order in which steps were applied, as a table: what a run needs to be repeated in one process."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine import RunFailed, UsageError

from .rules import Push, Taken

NAME = "trace.csv"
COLUMNS = ("update", "worker", "step", "sample", "version", "age")
MARK = "# "  # begins the line of facts


class Trace:
    """Writes a row for each step that is applied; what is not flushed by ``size`` is not promised to be there.

    facts: about the whole run, for the first line. size: of what belongs to the checkpoint that the run goes on from;
    what came after it is removed. None, or a file that is shorter: begin anew.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], size: int | None = None) -> None:
        self._path = path
        try:
            if size is not None and path.exists() and path.stat().st_size >= size:
                os.truncate(path, size)
                self._file: IO[str] = path.open("a", encoding="utf-8")
            else:
                self._file = path.open("w", encoding="utf-8")
                self._file.write(f"{MARK}{json.dumps(dict(facts))}\n{','.join(COLUMNS)}\n")
        except OSError as error:
            raise self._failure(error) from error

    def add(self, update: int, push: Push) -> None:
        """Write down which worker's steps made update number ``update``."""
        rows = io.StringIO()
        for t in push.steps:
            rows.write(f"{update},{push.worker},{t.step},{t.sample},{t.version},{t.age}\n")
        try:
            self._file.write(rows.getvalue())
        except OSError as error:
            raise self._failure(error) from error

    def size(self) -> int:
        """Return how many bytes there are, once they are on the disk."""
        try:
            if not self._file.closed:
                self._file.flush()
                os.fsync(self._file.fileno())
            return self._path.stat().st_size
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Write no more."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> RunFailed:
        return RunFailed(f"{self._path} cannot be written ({error.strerror}); make room and go on with resume=auto")


@dataclass(frozen=True)
class Update:
    """An update as it was recorded: who made it, from which steps."""

    worker: int
    steps: list[Taken]


def read(path: Path) -> tuple[dict[str, Any], list[Update]]:
    """Return a trace's facts and its updates in order; ``path`` is the file or a run folder.

    Raises UsageError naming the file if there is none, or if it is not one whole trace from the run's beginning.
    """
    path = path / NAME if path.is_dir() else path
    try:
        with path.open(encoding="utf-8", newline="") as file:
            facts = json.loads(file.readline().removeprefix(MARK))
            rows = [{name: int(row[name]) for name in COLUMNS} for row in csv.DictReader(file)]
    except OSError as error:
        raise UsageError(f"parallel.trace: {path} cannot be read ({error.strerror}); give a run's folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"parallel.trace: {path} is no whole trace: has its run ended or saved?") from error
    updates: list[Update] = []
    for row in rows:
        if row["update"] == len(updates):
            updates.append(Update(row["worker"], []))
        if row["update"] != len(updates) - 1:
            raise UsageError(f"parallel.trace: {path} does not begin with its run: it was resumed into another folder")
        updates[-1].steps.append(Taken(row["step"], row["sample"], row["version"], row["age"]))
    return facts, updates
