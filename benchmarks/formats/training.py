"""Trainings of the engine itself in this process, their test errors, and a record of each that is not made twice."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inputs.ours import session

from engine import assemble
from engine.errors import UsageError

RECORD = "record.json"
QUIETLY = ("observe=[csv]", "save.keep=1", "save.best=false")


@dataclass(frozen=True)
class Training:
    """A finished run: its words, seed, test error (in %) after each evaluation, and the seconds it took."""

    words: tuple[str, ...]
    seed: int
    errors: tuple[float, ...]
    seconds: float

    @property
    def error(self) -> float:
        """The error at the end, in %, not the best one on the way."""
        return self.errors[-1]


def train(words: Sequence[str], seed: int, folder: Path) -> Training:
    """Return what ``engine train words run.seed=SEED`` gives; what ``folder`` has recorded of it is not done again.

    folder: of this training alone, which goes on from its last epoch if it was interrupted. What is there of other
    words, or another seed, is removed.
    """
    record, wanted = folder / RECORD, {"words": [*words], "seed": seed}
    found = json.loads(record.read_text()) if record.is_file() else {}
    if {key: found.get(key) for key in wanted} != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        record.write_text(json.dumps(wanted))
        found = wanted
    if not found.get("done"):
        asked = session(*words, f"run.seed={seed}", f"out={folder}", *QUIETLY)
        asked.options.resume = "auto"  # the words would be refused: their job here, to hand over, resumes nothing
        if assemble(asked, lambda text: None).fit() != "done":
            raise UsageError(f"{folder} was stopped; the same command goes on with it")
        record.write_text(json.dumps(wanted | {"done": True}))
    return Training((*words,), seed, *told_by(folder / "metrics.csv"))


def told_by(metrics: Path) -> tuple[tuple[float, ...], float]:
    """Return the test error of every evaluation in a ``metrics.csv``, in %, and the seconds that the run took."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    errors = (100 * (1 - float(row["test/accuracy"])) for row in rows if row.get("test/accuracy"))
    return tuple(errors), float(rows[-1]["seconds"])


def mean_difference(these: Sequence[Training], those: Sequence[Training]) -> float:
    """Return by how many points the first have the higher error, in the mean over pairs of equal seed."""
    assert [one.seed for one in these] == [one.seed for one in those]
    return statistics.fmean(one.error - other.error for one, other in zip(these, those, strict=True))


def seed_noise(*groups: Sequence[Training]) -> float:
    """Return the standard deviation of the error from seed to seed, in points, pooled over groups of one recipe each.

    Groups have equally many seeds, at least two.
    """
    return statistics.fmean(statistics.variance([one.error for one in group]) for group in groups) ** 0.5
