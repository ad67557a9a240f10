"""Samples of a network whose stochastic layers draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from torch import Tensor, nn

from engine import UsageError
from engine.interfaces import Marginalization
from engine.layers import drawing, stochastic_layers


class Samples(Marginalization):
    """Gives the same images several times, the network's stochastic layers drawing anew each time."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the images as they are, ``samples`` times."""
        for _ in range(self.samples):
            yield images

    def sampling(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which stochastic layers draw. Raises UsageError if the model has none."""
        if not stochastic_layers(model):
            raise UsageError(
                "marginalize.mc: the model has no layer that draws (dropout, DropConnect, stochastic depth), so all "
                "samples would be equal: leave it out, or choose a model or an option that has one"
            )
        return drawing(model)
