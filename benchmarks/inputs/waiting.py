"""The share of a training's time that it spends waiting for data, here and with the usual DataLoader."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from harness import Spread
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from . import Bench, classical, ours
from .crops import prepared
from .photographs import cifar, cifar_training
from .resnet50 import ResNet50

CLASSICAL, ENGINE = "loop by hand, DataLoader + Pillow", "engine"
SKIPPED = 3  # steps


@dataclass(frozen=True)
class Training:
    """The same training twice: as words for the engine, and as a dataset and a network for a loop by hand."""

    title: str
    words: list[str]
    dataset: Dataset
    network: nn.Module
    batch: int
    steps: int


def waiting(bench: Bench) -> None:
    """Train ResNet-20 on CIFAR and ResNet-50 on photographs for some steps."""
    for training in (resnet20(bench), resnet50(bench)):
        shares: dict[str, list[tuple[float, float]]] = {ENGINE: [], CLASSICAL: []}
        for number in range(bench.turns(1, 3)):
            run = bench.folder / f"{training.title} {number}".replace(" ", "-")
            words = [*training.words, f"run.batch={training.batch}"]
            shares[ENGINE].append(ours.share_waiting(words, run, training.steps, SKIPPED))
            shares[CLASSICAL].append(by_hand(training))
        rows = [
            [side, Spread.of([s for _, s in found]).text(1e3, 0), Spread.of([w for w, _ in found]).text(100, 2)]
            for side, found in shares.items()
        ]
        title = f"{training.title}, batches of {training.batch}: time waiting for data"
        bench.report.table(title, ["side", "ms a step", "% waiting"], rows)
        share = Spread.of([waited for waited, _ in shares[ENGINE]]).median
        bench.report.claim(f"{training.title}: share of time waiting for data", 100 * share, 1, "%")


def resnet20(bench: Bench) -> Training:
    """Return ResNet-20's training on CIFAR."""
    images = cifar(bench.folder / "cifar-for-training")
    words = ["data=cifar10", f"data.root={images.root}", "model=resnet20", *ours.cifar_recipe(cut=False)]
    dataset = classical.Arrays(*cifar_training(images), classical.cifar_recipe(cut=False))
    network = ours.network("resnet20", (3, 32, 32), 10)
    return Training("resnet20 on CIFAR", words, dataset, network, 128, bench.pick(5, 40))


def resnet50(bench: Bench) -> Training:
    """Return ResNet-50's training on photographs."""
    images, store = prepared(bench)
    words = [*ours.store_words(store), "model=benchmarked_resnet50", *ours.recipe()]
    dataset = classical.Files(images.root / "train", classical.recipe(False))
    classes = len(list((images.root / "train").iterdir()))
    return Training("ResNet-50 at 224", words, dataset, ResNet50(classes), bench.pick(4, 16), bench.pick(2, 6))


def by_hand(training: Training) -> tuple[float, float]:
    """Train in the plainest loop; return the share of time waiting for the loader, and a step's seconds."""
    network = training.network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    ready = classical.loader(training.dataset, training.batch, training.steps + SKIPPED)
    batches: Iterator[tuple[Tensor, Tensor]] = iter(ready)
    waited, begun = 0.0, 0.0
    for step in range(training.steps + SKIPPED):
        asked = time.perf_counter()
        if step == SKIPPED:
            waited, begun = 0.0, asked
        images, targets = next(batches)
        waited += time.perf_counter() - asked
        cross_entropy(network(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - begun
    classical.exhaust(batches)
    return waited / seconds, seconds / training.steps
