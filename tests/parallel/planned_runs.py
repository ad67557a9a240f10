"""What processes do in the tests of planning: whole runs whose bytes are counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planned_models import Wide

from engine import Data, Key, Observer, Parallel, hookimpl
from engine.distributed import current
from engine.options import SaveOptions
from engine.plugins.parallel import Auto
from engine.plugins.parallel.planning.layers import layers_of, statistics_of
from engine.testing import check_strategy, small_run
from engine.testing.processes import bytes_sent
from engine.testing.small import SmallSource

STEPS = 6


class Notes:
    """Keeps what the run tells at its steps and logs."""

    def __init__(self) -> None:
        self.told: list[dict[str, float]] = []
        self.wire: list[int] = []

    @hookimpl
    def on_log(self, run: Any, scalars: dict[str, float]) -> None:
        self.told.append(dict(scalars))

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        self.wire.append(bytes_sent())


@dataclass
class Noting(Observer):
    """Notes."""

    notes: Any = None

    def build(self) -> object:
        return self.notes


@dataclass
class Many(Data):
    """So many images that the tests' runs end within an epoch."""

    threads: int = 0

    def build(self, split: str) -> Any:
        return SmallSource(32 * STEPS + 1, Key.of(0).at(split))


def counted(strategies: Mapping[str, Parallel], folder: str, batch: int) -> dict[str, tuple[float, float, str]]:
    """Return, by name, bytes of a step as this process counts them, those on the wire by all, and what is told."""
    return {name: _counted(strategy, Path(folder) / name, batch) for name, strategy in strategies.items()}


def _counted(parallel: Parallel, folder: Path, batch: int) -> tuple[float, float, str]:
    notes = Notes()
    current().traffic.read(1)  # what a run before has sent at its end is forgotten
    run = small_run(
        folder, parallel=parallel, model=Wide(), data=Many(), observe={"notes": Noting(notes)}, batch=batch,
        steps=STEPS, log_every=STEPS, evaluate_every="never", save=SaveOptions(every="never"),
    )  # fmt: skip
    run.fit()
    run.lock.close()
    wire = (notes.wire[-1] - notes.wire[1]) / (STEPS - 2) if notes.wire else 0.0  # the first step sorts the buckets
    told = notes.told[-1]["communication/bytes"] if notes.told else 0.0
    return told, wire, run.strategy.describe()


def facts() -> tuple[list[Any], int]:
    """Return the layers and statistics of the network that ``counted`` trains."""
    model = Wide().build((1, 6, 6), 3)
    return layers_of(model, (1, 6, 6)), statistics_of(model)


def promises(parallel: Parallel) -> str:
    """Check the strategy's promises once it has been told the images' shape; return what it tells of itself."""
    strategy = parallel.build()
    strategy.example = (4, 1, 6, 6)
    check_strategy(strategy)
    return strategy.describe()


def automatic(folder: str, batch: int) -> tuple[str, tuple[float, float, str]]:
    """Return what ``parallel=auto`` tells once its promises are checked, and what a run with it does."""
    return promises(Auto()), _counted(Auto(), Path(folder), batch)
