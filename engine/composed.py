"""A composed model and its convolutions, without a run: for jobs that look at them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.building import build_augmentations, count_outputs, open_split
from engine.convolutions import Layer, survey
from engine.devices import prepare_device
from engine.errors import UsageError
from engine.freezing import freeze
from engine.host_to_device import Layout
from engine.interfaces import Anatomy, Precision, Transfer
from engine.loader import Loader, TestLoader
from engine.randomness import Key, seed_torch
from engine.session import Session

STEPS = 1000  # a length that leaves every stage of a transfer some steps


def composed_layers(
    session: Session, inputs: Sequence[int] = (), classes: int = 10, training: bool = True
) -> tuple[list[Layer], tuple[int, int, int, int]]:
    """Return the convolutions of the composed model for micro-batches of the composed data, and the images' shape.

    The model and the images are those of ``composed_model``. Raises UsageError for a model that cannot take them.
    """
    model, images, precision = composed_model(session, inputs, classes, training)
    with explained(images[1:]), precision.forward():
        return survey(model, images, training), images


def composed_model(
    session: Session, inputs: Sequence[int] = (), classes: int = 10, training: bool = True
) -> tuple[nn.Module, tuple[int, int, int, int], Precision]:
    """Return the composed model, the shape of its micro-batches of the composed data, and the numeric policy.

    inputs: (channels, height, width) of images with so many ``classes``; no data is opened then. The model is on its
    device, in the precision's numbers, with what the first stage of a transfer trains. Raises UsageError for a model
    that cannot be made for such images.
    """
    options = session.options
    device, precision = prepare_device(options), options.precision.build()
    model, anatomy, shape = _network(session, Layout(device, precision.dtype), inputs, classes, training)
    with explained(shape):
        transfer = options.transfer.build()
        freeze(model, transfer.factors(model, anatomy, transfer.stages(STEPS)[0]))
        model = precision.convert(model.to(device))
        if options.run.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, (options.run.batch, shape[0], shape[1], shape[2]), precision


def composed_transfer(
    session: Session, inputs: Sequence[int] = (), classes: int = 10
) -> tuple[nn.Module, Anatomy, Transfer, list[str]]:
    """Return the composed model, on the CPU and with its first weights, its anatomy, the plan, and what that tells.

    The images are those of ``composed_model``. Raises UsageError for a model that cannot be made for such images, and
    for weights that do not fit it.
    """
    options = session.options
    model, anatomy, shape = _network(session, Layout(torch.device("cpu")), inputs, classes, training=True)
    transfer = options.transfer.build()
    with explained(shape):
        return model, anatomy, transfer, list(transfer.start(model, anatomy))


def _network(
    session: Session, layout: Layout, inputs: Sequence[int], classes: int, training: bool
) -> tuple[nn.Module, Anatomy, tuple[int, int, int]]:
    options, loss = session.options, session.options.loss.build()
    shape, outputs = (inputs, loss.outputs(classes)) if inputs else images_and_outputs(options, loss, layout, training)
    seed_torch(Key.of(options.run.seed).at("init"), torch.device("cpu"))
    with explained(shape):
        image = (shape[0], shape[1], shape[2])
        return (
            options.model.build(image, outputs),
            Anatomy(lambda count: options.model.build(image, count), outputs, image),
            image,
        )


@contextmanager
def explained(shape: Sequence[int]) -> Iterator[None]:
    """Within ``with``, what torch raises for sizes that do not fit becomes a UsageError about images of ``shape``."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UsageError(f"model cannot take images of shape {tuple(shape)}: {reason}") from error


def device_of(session: Session) -> torch.device:
    """Return the device of ``run.device``, from now on the current one; UsageError if this machine has none such."""
    return prepare_device(session.options)


def images_and_outputs(options: Any, loss: Any, layout: Layout, training: bool) -> tuple[Sequence[int], int]:
    """Return the shape of an image as the model is given it, and the outputs that the loss wants."""
    train = open_split(options, "train")
    augmentations = build_augmentations(options, lambda: train)
    if training:
        key = Key.of(options.run.seed)
        example = Loader(train, augmentations, key, batch=options.run.batch, layout=layout).example()
    else:
        test = open_split(options, "test")
        example = TestLoader(test, augmentations, batch=2, layout=layout).batch_at(0)
    return tuple(example.images.shape[1:]), count_outputs(train, example, loss)
