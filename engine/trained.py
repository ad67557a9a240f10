"""A trained network for other uses than scoring: its model on the CPU, examples, and how pixels are prepared for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.building import build_augmentations, build_model, open_split
from engine.host_to_device import Layout
from engine.interfaces import Batch
from engine.loader import TestLoader
from engine.preparation import read
from engine.randomness import Key
from engine.scoring import weights_of
from engine.session import Session
from engine.weights import load_state


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, with the weights it is evaluated with.

    images: examples of the test split as the network takes them, [n, c, h, w]. pixels: float32 [c, 256], the value that
    stands for a pixel in each channel; None where images are no bytes or preparing one is more than that. classes: the
    names of the outputs, none for a regression.
    """

    model: nn.Module
    images: Tensor
    pixels: Tensor | None
    classes: tuple[str, ...]


@contextmanager
def trained(session: Session, weights: Path, examples: int, tell: Callable[[str], None]) -> Iterator[Trained]:
    """Yield the network that the session composes with the weights that ``weights`` means, while they are in place.

    examples: how many images to give with it, at most the test split's. ``tell`` hears which weights were read. Raises
    UsageError naming what does not fit.
    """
    options = session.options
    precision, loss = options.precision.build(), options.loss.build()
    given = weights_of(weights, tell, session.choices.get("precision", ""))
    test = open_split(options, "test")
    augmentations = build_augmentations(options, lambda: open_split(options, "train"))
    layout = Layout(torch.device("cpu"), precision.dtype)
    batch = TestLoader(test, augmentations, batch=examples, layout=layout).batch_at(0)
    model = build_model(options, test, batch, loss, Key.of(options.run.seed))
    load_state(model, given.model, str(weights))
    model = precision.export(model).eval()
    given.tell(precision)

    def prepare(images: Tensor) -> Tensor:
        for augmentation in augmentations.values():
            images = augmentation.test(images)
        nothing = torch.zeros(len(images), dtype=torch.int64)
        return layout.place(Batch(images, nothing, nothing)).images

    raw, _ = read(test, range(len(batch.images)))
    with precision.evaluation_weights(model):
        yield Trained(model, batch.images, pixel_values(prepare, raw), tuple(test.classes))


def pixel_values(prepare: Callable[[Tensor], Tensor], images: Tensor) -> Tensor | None:
    """Return what ``prepare`` makes of every pixel value, float32 [c, 256]; None if it does more than look it up.

    images: uint8 [n, c, h, w], on which that is tried; other types have no pixel values.
    """
    if images.dtype != torch.uint8:
        return None
    shades = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *images.shape[1:])
    prepared = prepare(shades.contiguous()).float()
    if prepared.shape != shades.shape:
        return None
    values = prepared[:, :, 0, 0].T.contiguous()
    channels = torch.arange(len(values)).view(1, -1, 1, 1)
    looked_up = (torch.equal(values[channels, given.long()], prepare(given).float()) for given in (shades, images))
    return values if all(looked_up) else None
