"""Mirroring left to right."""

from __future__ import annotations

from torch import Tensor

from engine import Key, uniform
from engine.interfaces import Augmentation


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Return images [n, c, h, w] with those where ``mirrored`` (bool [n]) is True mirrored left to right."""
    chosen = mirrored.nonzero().squeeze(1)
    return images.index_copy(0, chosen, images.index_select(0, chosen).flip(3))


class Flipping(Augmentation):
    """Mirrors each image with the same probability, independently of all others."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Return bool [n]: which samples are mirrored."""
        return uniform(key, samples, 1)[:, 0] < self.probability

    def apply(self, images: Tensor, targets: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Mirror the images that ``draw`` chose."""
        return flip(images, parameters), targets
