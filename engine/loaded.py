"""A trained network with both splits of its data, for jobs that look at what its layers give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.building import anatomy_of, build_augmentations, build_chooser, build_model, open_splits, reading_of
from engine.devices import prepare_device
from engine.errors import UsageError
from engine.interfaces import Batch, Precision, Source
from engine.loader import TestLoader
from engine.pixels import pixels_of
from engine.randomness import Key
from engine.session import Session


@dataclass(frozen=True)
class Loaded:
    """A network in evaluation mode with its weights in place, and what it is given.

    splits: the images as an evaluation prepares them, by "train" and "test". new: names of the parameters that no
    weights were given for, a head for other classes, say.
    """

    model: nn.Module
    precision: Precision
    splits: dict[str, TestLoader]
    classes: tuple[str, ...]
    new: frozenset[str]

    def source(self, split: str) -> Source:
        """Return a split's records."""
        return self.splits[split].source

    def passes(
        self, split: str, look: Callable[[Tensor], dict[str, Tensor]]
    ) -> Iterator[tuple[dict[str, Tensor], Batch]]:
        """Yield what ``look`` makes of each batch of a split, and the batch; no gradients are kept."""
        for batch in self.splits[split]:
            with torch.no_grad(), self.precision.forward():
                made = look(batch.images)
            yield made, batch


@contextmanager
def loaded(session: Session, checkpoint: str, tell: Callable[[str], None]) -> Iterator[Loaded]:
    """Yield the network that a session composes, with a checkpoint's weights or those of its ``transfer.weights``.

    ``tell`` hears which were read. A head for other classes is no fault. Raises UsageError naming what is missing or
    does not fit.
    """
    options = session.options
    if not checkpoint and not getattr(options.transfer, "weights", ""):
        raise UsageError(
            "checkpoint must be given: a run or checkpoint folder, or a .safetensors, .pt, .pth or .th file; or other "
            "weights by transfer=full transfer.weights=..."
        )
    device = prepare_device(options)
    precision, strategy, loss = options.precision.build(), options.parallel.build(), options.loss.build()
    train, test = open_splits(options)
    augmentations = build_augmentations(options, lambda: train)
    reading = reading_of(options, device, precision, strategy)
    splits = {
        name: TestLoader(source, augmentations, **reading, reopen=partial(options.data.build, name))
        for name, source in (("train", train), ("test", test))
    }
    example = splits["train"].batch_at(0)
    model = build_model(options, train, example, loss, Key.of(options.run.seed))
    plan: Any = options.transfer
    if checkpoint:
        plan = session.registry.entry("transfer", "full").options()
        plan.weights = checkpoint
    transfer, pixels = plan.build(), pixels_of(train, augmentations)
    for line in (
        *transfer.start(model, anatomy_of(options, train, example, loss)),
        *(transfer.compare(pixels) if pixels else ()),
    ):
        if " train at " not in line:  # nothing trains here
            tell(line)
    model = precision.convert(model.to(device)).eval()
    if options.run.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernels = build_chooser(options, session.registry)
    count, channels, height, width = example.images.shape
    with precision.forward():
        kernels.apply(model, (count, channels, height, width), training=False)
    try:
        with ExitStack() as stack:
            stack.enter_context(precision.evaluation_weights(model))
            stack.enter_context(kernels.prepared(model))
            yield Loaded(model, precision, splits, tuple(train.classes), transfer.new or frozenset())
    finally:
        for split in splits.values():
            split.close()
