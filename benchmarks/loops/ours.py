"""The loop of this engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine import Batch, Data, Model, Records, Run, Session, assemble
from engine.interfaces import Source
from engine.loader import Position, Step
from engine.options import Options, RunOptions, SaveOptions
from engine.registry import Registry

from . import LR, MOMENTUM, Feed, Loop, Work, stage

OBSERVERS = ("progress", "tensorboard", "csv")  # the default
CLASSES = 10


class Blank(Source):
    """Black images: the run is assembled from them, then given the ready batches."""

    classes = tuple(str(number) for number in range(CLASSES))
    fingerprint = "blank"

    def __init__(self, shape: tuple[int, int, int], count: int) -> None:
        self.shape, self._count = shape, count

    def __len__(self) -> int:
        return self._count

    def records(self, indices: Sequence[int]) -> Records:
        """Return black images of class 0."""
        images = torch.zeros((len(indices), *self.shape), dtype=torch.uint8)
        return Records("raw", images, torch.zeros(len(indices), dtype=torch.int64))


@dataclass
class BlankData(Data):
    """Images of some shape."""

    shape: tuple[int, int, int] = (1, 1, 1)
    count: int = 1

    def build(self, split: str) -> Source:
        """Make the source."""
        return Blank(self.shape, self.count)


@dataclass
class Given(Model):
    """A copy of the work's network."""

    work: Any = None

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the copy."""
        return copy.deepcopy(self.work.network)


def build_run(
    work: Work, registry: Registry, folder: Path, observers: Sequence[str] = OBSERVERS, cuda_graph: bool = False
) -> tuple[Run, Feed]:
    """Return a run of the default components that trains ``work``, and its feed.

    It logs every 50 steps, as by default, or on a CPU as often as there are timed steps if those are fewer. Its first
    log, which also writes an image and the head of a table, comes after its first step, which is not timed.
    """

    def chosen(group: str, name: str) -> Any:
        return registry.entry(group, name).options()

    images, _ = work.batches[0]
    log_every = min(50, work.steps) if work.device.type == "cpu" else 50
    before = Position(log_every - 1)
    optimizer = chosen("optim", "sgd")
    optimizer.lr, optimizer.momentum, optimizer.weight_decay = LR, MOMENTUM, 0.0
    options = Options(
        job=chosen("job", "train"),
        data=BlankData(shape=tuple(images.shape[1:]), count=len(images), threads=0),
        augment={},
        model=Given(work=work),
        loss=chosen("loss", "cross_entropy"),
        optim=optimizer,
        schedule=chosen("schedule", "constant"),
        kernels=chosen("kernels", "native"),
        parallel=chosen("parallel", "single"),
        precision=chosen("precision", "float32"),
        transfer=chosen("transfer", "none"),
        observe={name: chosen("observe", name) for name in observers},
        run=RunOptions(
            steps=before.step + work.length,
            batch=len(images),
            device=work.device.type,
            cuda_graph=cuda_graph,
            evaluate_every="never",
            log_every=log_every,
        ),
        save=SaveOptions(every="never"),
    )
    choices = {"data": "ready batches", "model": "the same", "observe": list(observers)}
    run = assemble(Session(options, registry, folder, choices=choices, config="see benchmarks/loops/ours.py\n"))
    run.position = before
    feed = work.feed(ready_steps(work, before))
    run.loader.steps = lambda position: iter(feed)  # type: ignore[assignment,method-assign]
    return run, feed


def ready_steps(work: Work, position: Position) -> list[Step]:
    """Return the batches as the engine's loader would hand them out from ``position`` on, all made beforehand."""
    steps = []
    for number in range(work.length):
        images, targets = work.batches[number % len(work.batches)]
        first, count = position.sample, len(images)
        position = Position(position.step + 1, first + count)
        steps.append(Step([Batch(images, targets, torch.arange(first, first + count))], count, 0, None, position))
    return steps


def engine_loop(registry: Registry, observers: Sequence[str] = OBSERVERS, cuda_graph: bool = False) -> Loop:
    """Return the loop that trains with ``Run.fit``, observed by ``observers``, with ``cuda_graph`` by replays."""

    def loop(work: Work) -> tuple[float, nn.Module]:
        with stage() as folder:
            run, feed = build_run(work, registry, Path(folder), observers, cuda_graph)
            run.fit()
        return feed.seconds, run.model

    return loop
