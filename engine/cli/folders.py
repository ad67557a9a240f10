"""The run's folder: a new one for each run unless ``out`` names it, made before anything is computed."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from engine.errors import UsageError

RUNS = Path("runs")


def fresh() -> Path:
    """Make and return a new folder ``runs/<date>/<time>``; two runs started at once get different ones.

    Raises UsageError if it cannot be made.
    """
    now = datetime.now()
    parent = usable(RUNS / now.strftime("%Y-%m-%d"))
    name, copies = now.strftime("%H-%M-%S"), 1
    while True:
        folder = parent / (name if copies == 1 else f"{name}-{copies}")
        try:
            folder.mkdir()
        except FileExistsError:
            copies += 1
        else:
            return folder


def discard_empty(folder: Path) -> None:
    """Remove ``folder`` if nothing was written into it."""
    if not any(folder.iterdir()):
        folder.rmdir()


def usable(folder: Path) -> Path:
    """Make ``folder`` if it is not there and return it. Raises UsageError if it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{folder} cannot hold the run ({error.strerror}); give another folder with out=") from error
    return folder
