"""Observers that come with the engine: who watches a run, and where its numbers go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Observer, hookimpl, option

if TYPE_CHECKING:
    from engine.registry import Store


@dataclass
class Progress(Observer):
    """A live bar in a terminal, plain lines everywhere else; both on standard error."""

    every: float = option(60.0, "most seconds between two plain lines within an epoch", above=0)

    def build(self) -> object:
        """Make the observer; it looks for a terminal when the run starts."""
        from .progress import Progress as Observing

        return Observing(self.every)


@dataclass
class TensorBoard(Observer):
    """Charts, images, text and hparams for TensorBoard, in one event file in the run's folder."""

    images: int = option(64, "images of the first augmented batch to show; 0: none", at_least=0, at_most=256)
    histograms: int = option(0, "logs between two histograms of weights and gradients; 0: never", at_least=0)

    def build(self) -> object:
        """Make the observer; without histograms it has nothing to do when gradients are complete."""
        if self.histograms:
            from .histograms import TensorBoardHistograms

            return TensorBoardHistograms(self.images, self.histograms)
        from .event_file import TensorBoard as Observing

        return Observing(self.images)


@dataclass
class Csv(Observer):
    """Every logged number as a row of metrics.csv in the run's folder."""

    def build(self) -> object:
        """Make the observer; it opens the file when the run starts."""
        from .csv_file import CsvFile

        return CsvFile()


@dataclass
class Profile(Observer):
    """A trace of a few steps on host and GPU, for Perfetto, chrome://tracing and TensorBoard's profiler plugin."""

    wait: int = option(10, "steps to leave out at first: they load libraries and allocate memory", at_least=0)
    warmup: int = option(2, "steps to profile without keeping them: the first ones are slowed down", at_least=1)
    record: int = option(5, "steps to record", at_least=1)

    def build(self) -> object:
        """Make the observer; it watches from the run's first step on."""
        from .trace import Trace

        return Trace(self.wait, self.warmup, self.record)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the observers."""
    store.add("observe", "progress", Progress)
    store.add("observe", "tensorboard", TensorBoard)
    store.add("observe", "csv", Csv)
    store.add("observe", "profile", Profile)
