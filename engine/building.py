"""From options to the parts that a job works with: sources, augmentations, loaders, the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.errors import UsageError
from engine.host_to_device import Layout
from engine.interfaces import (
    Anatomy,
    Augmentation,
    Batch,
    KernelChooser,
    LossFunction,
    Precision,
    Source,
    Strategy,
)
from engine.loader import Loader
from engine.options import Options
from engine.order import Shuffle
from engine.randomness import Key, seed_torch
from engine.registry import Registry
from engine.workers import Workers


def open_split(options: Options, split: str) -> Source:
    """Return the "train" or "test" source; raises UsageError if it is empty."""
    source = options.data.build(split)
    if len(source) == 0:
        raise UsageError(f"data: the {split} set is empty")
    return source


def open_splits(options: Options) -> tuple[Source, Source]:
    """Return the training and the test source; raises UsageError if their classes or image shapes differ."""
    train, test = open_split(options, "train"), open_split(options, "test")
    if list(train.classes) != list(test.classes):
        lone = sorted(set(train.classes) ^ set(test.classes))
        raise UsageError(
            f"data: the training set has {len(train.classes)} classes, the test set {len(test.classes)}; "
            + (f"only one of them has {', '.join(lone[:5])}" if lone else "they are in another order")
        )
    if tuple(train.shape) != tuple(test.shape):
        raise UsageError(
            f"data: training images are {tuple(train.shape)} (channels, height, width), test images "
            f"{tuple(test.shape)}; they must be alike"
        )
    return train, test


def require_targets(source: Source, loss: LossFunction) -> None:
    """Raise UsageError if the loss is for classes and the data has none, or the other way round."""
    if loss.regression and source.classes:
        raise UsageError(
            f"loss: it takes rows of numbers, but the data has {len(source.classes)} classes: choose another"
        )
    if not loss.regression and not source.classes:
        raise UsageError("loss: it takes classes, but the data has none: choose loss=mse loss.targets=values")


def build_augmentations(options: Options, training: Callable[[], Source]) -> dict[str, Augmentation]:
    """Return the augmentations in their order, each having learnt what it needs from the training source."""
    augmentations = {name: choice.build() for name, choice in options.augment.items()}
    for augmentation in augmentations.values():
        augmentation.prepare(training)
    return augmentations


def reading_of(options: Options, device: torch.device, precision: Precision, strategy: Strategy) -> dict[str, Any]:
    """Return how the loaders of a run read: what both take, worker processes that they share among it.

    Raises UsageError for options that do not go together.
    """
    data = options.data
    if data.augment_on != "host" and data.workers == "processes":
        raise UsageError(f"data.workers=processes augments on the host: choose threads, or not {data.augment_on}")
    if data.augment_on == "resident" and data.shuffle == "blocks":
        raise UsageError("data.augment_on=resident keeps all images in memory: choose data.shuffle=full")
    return {
        "batch": options.run.batch, "threads": data.threads, "prefetch": data.prefetch,
        "layout": Layout(device, precision.dtype, options.run.channels_last, data.augment_on),
        "rank": strategy.rank, "world": strategy.world,
        "workers": Workers(data.threads) if data.workers == "processes" else None,
    }  # fmt: skip


def build_loader(
    options: Options,
    source: Source,
    augmentations: Mapping[str, Augmentation],
    key: Key,
    reading: Mapping[str, Any],
    equal: bool = False,
) -> Loader:
    """Return what reads the training source; ``equal``: every process as many samples of a micro-batch."""
    data = options.data
    shuffle, reopen = Shuffle(data.shuffle, data.block, data.blocks_mixed), partial(data.build, "train")
    accumulate = options.run.accumulate
    return Loader(
        source, augmentations, key, accumulate=accumulate, shuffle=shuffle, reopen=reopen, equal=equal, **reading
    )


def build_model(options: Options, source: Source, example: Batch, loss: LossFunction, key: Key) -> nn.Module:
    """Return the model, initialised from the key's own draws, after trying it on two samples.

    Raises UsageError if it cannot take the images or does not return what the loss needs.
    """
    images = example.images[:2].to("cpu", torch.float32)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    outputs = count_outputs(source, example, loss)
    seed_torch(key.at("init"), torch.device("cpu"))
    try:
        model = options.model.build(shape, outputs).eval()
        with torch.no_grad():
            given = model(images)
    except (RuntimeError, ValueError) as error:  # what torch raises for sizes that do not fit
        reason = " ".join(str(error).split("\n")[0].split())
        raise UsageError(f"model cannot take images of shape {shape}: {reason}") from error
    heads = list(given) if isinstance(given, list | tuple) else [given]
    if not heads or not all(isinstance(head, torch.Tensor) for head in heads):
        kinds = ", ".join(type(head).__name__ for head in heads) or "nothing"
        raise UsageError(f"model returns {kinds}; the loss needs a tensor, or several with the main one first")
    if heads[0].shape != (len(images), outputs):
        raise UsageError(
            f"model returns {list(heads[0].shape)} for {len(images)} images of {len(source.classes)} classes; "
            f"the loss needs {[len(images), outputs]}"
        )
    return model.train()


def build_chooser(options: Options, registry: Registry) -> KernelChooser:
    """Return what puts kernels into the model; it knows every installed choice of ``kernels`` by name."""
    installed: dict[str, Any] = {name: registry.entry("kernels", name).options for name in registry.names("kernels")}
    return options.kernels.build(installed)


def count_outputs(source: Source, example: Batch, loss: LossFunction) -> int:
    """Return how many outputs the model needs; raises UsageError for a source with neither classes nor float rows."""
    if source.classes:
        return loss.outputs(len(source.classes))
    if example.targets.ndim != 2:
        raise UsageError(
            f"data: a source without classes needs targets [n, outputs] to regress, not {list(example.targets.shape)}"
        )
    return example.targets.shape[1]


def anatomy_of(options: Options, source: Source, example: Batch, loss: LossFunction) -> Anatomy:
    """Return what the composed network is made of, for a transfer that asks."""
    _, channels, height, width = example.images.shape
    shape = (channels, height, width)
    return Anatomy(lambda outputs: options.model.build(shape, outputs), count_outputs(source, example, loss), shape)
