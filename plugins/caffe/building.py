"""From the options of ``model=caffe`` to a network."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine import UsageError

from .graph import TRAIN, Graph, graph_of
from .losses import require_losses
from .network import Network, require_unshared
from .prototxt import Mistake, read
from .wire import read_blob

if TYPE_CHECKING:
    from . import CaffeNetwork

STORED = "stored"  # for model.mean: among the weights


def text_of(prototxt: str) -> tuple[str, str]:
    """Return the text that ``prototxt`` is, or that is in the file which it names, and what to call it in an error."""
    if "{" in prototxt or "\n" in prototxt:
        return prototxt, "model.prototxt"
    path = Path(prototxt).expanduser()
    return read(path), str(path)


def network(options: CaffeNetwork, inputs: tuple[int, int, int], outputs: int | None) -> Network:
    """Return the network of a prototxt for images of that shape and so many outputs. Raises UsageError.

    outputs: None for as many as the prototxt says.
    """
    text, origin = text_of(options.prototxt)
    try:
        found = graph(text, options.phase, tuple(options.stages))
        if options.phase == TRAIN:
            require_losses(found)
        return Network(found, inputs, outputs, mean_of(options.mean, inputs, options.mean_scale))
    except Mistake as error:
        raise UsageError(f"{origin}: {error}") from error


@lru_cache(maxsize=4)
def graph(text: str, phase: str, stages: tuple[str, ...] = ()) -> Graph:
    """Return what a text computes. Raises Mistake."""
    found = graph_of(text, phase, stages)
    require_unshared(found)
    return found


def mean_of(mean: str, inputs: tuple[int, int, int], scale: float = 1.0) -> Tensor | None:
    """Return the mean image that ``model.mean`` means by ``scale``, its middle where it is larger than the images.

    Zeros for what is to come with the weights. Raises UsageError for a file that is smaller, or has other channels.
    """
    if mean in ("", STORED):
        return torch.zeros(inputs) if mean else None
    image = read_blob(Path(mean).expanduser())
    room = [whole - size for whole, size in zip(image.shape[1:], inputs[1:], strict=True)]
    if len(image) != inputs[0] or min(room) < 0:
        raise UsageError(
            f"{mean} is a mean of images of {list(image.shape)} (channels, height, width), and these are {list(inputs)}"
        )
    top, left = (size // 2 for size in room)
    return torch.tensor(image[:, top : top + inputs[1], left : left + inputs[2]]) * scale
