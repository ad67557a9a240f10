"""CIFAR: padded crop, flip, normalise, cutout; beside the usual DataLoader and torch on many images at a time."""

from __future__ import annotations

import time
from functools import partial

import torch
from harness import Side, interleave

from . import Bench, Turn, batched, classical, ours, show
from .photographs import cifar, cifar_training

BATCH = 512
CLASSICAL, ENGINE = "DataLoader + Pillow", "engine"
BATCHED: dict[str, type[batched.Peer]] = {
    "torch, gathered bytes": batched.Gathered,
    "torch, whole epoch": batched.WholeEpoch,
    "torch, whole epoch of bytes": batched.WholeEpochOfBytes,
}


def small(bench: Bench) -> None:
    """Measure images of 32x32, in batches of 512."""
    images = cifar(bench.folder / "cifar")
    print(f"small images: {images.what}", flush=True)
    pixels, labels = cifar_training(images)
    words = ["data=cifar10", f"data.root={images.root}", *ours.cifar_recipe()]
    fast = Turn(BATCH, 8, bench.pick(60, 400))
    loaders = {
        ENGINE: ours.loader([*words, "data.threads=2"], BATCH),
        f"{ENGINE}, 1 thread": ours.loader([*words, "data.threads=1"], BATCH),
        f"{ENGINE}, in the training thread": ours.loader([*words, "data.threads=0"], BATCH),
        f"{ENGINE}, bfloat16": ours.loader([*words, "data.threads=2"], BATCH, torch.bfloat16),
        f"{ENGINE}, batches of 128": ours.loader([*words, "data.threads=2"], 128),
    }
    usual = classical.Arrays(pixels, labels, classical.cifar_recipe())
    sides: dict[str, Side] = {CLASSICAL: classical.side(usual, Turn(BATCH, 4, bench.pick(10, 40)))}
    sides |= {name: epochs(kind(pixels, BATCH), len(pixels)) for name, kind in BATCHED.items()}
    for name, ready in loaders.items():
        sides[name] = ours.side(ready, Turn(ready.batch, fast.skipped, fast.counted * BATCH // ready.batch))
    times = interleave(sides, bench.turns(2, 9))
    best = min(BATCHED, key=lambda name: times.spread(name).median)
    show(bench.report, "images of 32x32: padded crop, flip, normalise, cutout", times, [CLASSICAL, best])
    claim = partial(bench.report.claim, unit="x", at_least=True)
    claim("CIFAR over DataLoader", times.ratio(CLASSICAL, ENGINE).median, 30)
    claim("CIFAR over the fastest of batched torch", times.ratio(best, ENGINE).median, 8)


def epochs(peer: batched.Peer, images: int) -> Side:
    """Return the side of a peer whose turn is a whole epoch, work before its first batch included."""

    def take() -> float:
        begun = time.perf_counter()
        for _ in peer.epoch():
            pass
        return (time.perf_counter() - begun) / images

    return take
