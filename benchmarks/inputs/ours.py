"""The engine's side: options composed from the words of a command line, and what the engine makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Side
from torch import Tensor, nn

from engine import Job, Model, Observer, Session, assemble, hookimpl
from engine.building import build_augmentations, build_loader, open_split, reading_of
from engine.cli import arguments, compose
from engine.cli.presets import Presets
from engine.loader import Loader, Position, TestLoader
from engine.options import Options
from engine.randomness import Key
from engine.registry import Registry, Store

from . import CIFAR_MEAN, CIFAR_STD, MEAN, STD, WORKERS, Turn
from .resnet50 import ResNet50

AHEAD = 4  # batches that are prepared ahead: the default of data.prefetch


@dataclass
class HandOver(Job):
    """Give the composed options to the benchmark that asked for them."""

    def build(self) -> Callable[[Session], None]:
        """Return what keeps the session."""
        return _handed_over.append


@dataclass
class Watch(Observer):
    """A stopwatch of a run."""

    def build(self) -> object:
        """Return a stopwatch, which ``watches`` will hold."""
        watches.append(Stopwatch())
        return watches[-1]


@dataclass
class BenchmarkedResNet50(Model):
    """ResNet-50, for a benchmark."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        return ResNet50(outputs)


class Stopwatch:
    """Notes, after each step, the time and how long the training thread has waited for data until then."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    @hookimpl
    def on_step_end(self, run: Any, loss: Tensor, applied: Tensor) -> None:
        """Note them."""
        self.steps.append((time.perf_counter(), run.loader.waited))

    def share(self, skipped: int) -> tuple[float, float]:
        """Return the share of time spent waiting after the first ``skipped`` steps, and the seconds of a step."""
        (begun, before), (ended, waited) = self.steps[skipped - 1], self.steps[-1]
        return (waited - before) / (ended - begun), (ended - begun) / (len(self.steps) - skipped)


class Components:
    """The components that only a benchmark has."""

    @hookimpl
    def engine_options(self, store: Store) -> None:
        """Register them."""
        store.add("job", "hand_over", HandOver)
        store.add("observe", "watch", Watch)
        store.add("model", "benchmarked_resnet50", BenchmarkedResNet50)


watches: list[Stopwatch] = []
_handed_over: list[Session] = []


def session(*words: str) -> Session:
    """Return what ``engine JOB words`` would hand to its job. Raises UsageError as the command does."""
    registry = Registry.load()
    registry.register("benchmark", Components())
    compose.carry_out(arguments.parse(["hand_over", *words]), registry, Presets(registry, None))
    return _handed_over.pop()


def command(*words: str) -> None:
    """Do what ``engine words`` does, in this process."""
    registry = Registry.load()
    code = compose.carry_out(arguments.parse(list(words)), registry, Presets(registry, None))
    if code:
        raise SystemExit(code)


def listed(values: Sequence[float]) -> str:
    """Return a list as it is typed."""
    return f"[{','.join(map(str, values))}]"


def store_words(root: Path, *, threads: int = WORKERS, check: bool = True) -> list[str]:
    """Return the words that choose a store."""
    checked = f"data.check={str(check).lower()}"
    return ["data=store", f"data.root={root}", "data.size=224", f"data.threads={threads}", checked]


def folder_words(root: Path, *, threads: int = WORKERS) -> list[str]:
    """Return the words that choose a folder of JPEG files."""
    return ["data=folder", f"data.root={root}", "data.size=224", f"data.threads={threads}"]


def recipe(colours: str = "") -> list[str]:
    """Return the words of ImageNet's augmentation. colours: "", "folded" (nothing clipped) or "clipped"."""
    middle = "color_jitter,lighting," if colours else ""
    words = [
        f"augment=[random_resized_crop,flip,{middle}normalize]", "augment.random_resized_crop.size=224",
        f"augment.normalize.mean={listed(MEAN)}", f"augment.normalize.std={listed(STD)}",
    ]  # fmt: skip
    if colours:
        words += [f"augment.color_jitter.{what}=[0.4]" for what in ("brightness", "contrast", "saturation")]
        words += [f"augment.color_jitter.clip={str(colours == 'clipped').lower()}"]
        words += ["augment.lighting.std=0.1", "augment.lighting.components=imagenet"]
    return words


def cifar_recipe(cut: bool = True) -> list[str]:
    """Return the words of CIFAR's augmentation."""
    words = [
        f"augment=[pad_crop,flip,normalize{',cutout' if cut else ''}]", "augment.pad_crop.padding=4",
        f"augment.normalize.mean={listed(CIFAR_MEAN)}", f"augment.normalize.std={listed(CIFAR_STD)}",
    ]  # fmt: skip
    return [*words, "augment.cutout.size=8"] if cut else words


def loader(words: Sequence[str], batch: int, dtype: torch.dtype = torch.float32) -> Loader:
    """Return the loader of a training: what a run assembled from these words reads from, in ``dtype``."""
    options = session(*words, f"run.batch={batch}").options
    source = open_split(options, "train")
    augmentations = build_augmentations(options, lambda: source)
    reading = reading_here(options)
    reading["layout"] = replace(reading["layout"], dtype=dtype)
    return build_loader(options, source, augmentations, Key.of(options.run.seed), reading)


def test_loader(words: Sequence[str], batch: int) -> TestLoader:
    """Return the loader of an evaluation."""
    options = session(*words, f"run.batch={batch}").options
    source = open_split(options, "test")
    augmentations = build_augmentations(options, lambda: source)
    reopen = partial(options.data.build, "test")
    return TestLoader(source, augmentations, **reading_here(options), reopen=reopen)


def reading_here(options: Options) -> dict[str, Any]:
    """Return how the loaders of a run on the CPU read."""
    return reading_of(options, torch.device("cpu"), options.precision.build(), options.parallel.build())


def side(ready: Loader, turn: Turn) -> Side:
    """Return the side that loads with the engine; its threads are idle between two turns."""
    turn = replace(turn, skipped=max(turn.skipped, AHEAD + WORKERS))

    def take() -> float:
        steps = ready.steps(Position())
        try:
            return turn.per_image(steps)
        finally:
            steps.close()

    return take


def share_waiting(words: Sequence[str], folder: Path, steps: int, skipped: int) -> tuple[float, float]:
    """Train for so many steps after ``skipped`` ones; return the share of time waiting for data, and a step's seconds.

    folder: of the run, which must not exist.
    """
    asked = session(
        *words, f"out={folder}", f"run.steps={steps + skipped}", "run.evaluate_every=never", "save.every=never",
        "observe=[watch]",
    )  # fmt: skip
    assemble(asked).fit()
    return watches.pop().share(skipped)


def network(name: str, shape: tuple[int, int, int], outputs: int) -> nn.Module:
    """Return one of the engine's networks, for a loop by hand."""
    return Registry.load().entry("model", name).options().build(shape, outputs)  # type: ignore[attr-defined]
