"""Mirroring left to right."""

from __future__ import annotations

from torch import Tensor

from engine import Key, uniform
from engine.interfaces import Augmentation
from engine.plan import Plan


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Return images [n, c, h, w] with those where ``mirrored`` (bool [n]) is True mirrored left to right."""
    chosen = mirrored.nonzero().squeeze(1).to(images.device)
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

    def fuse(self, plan: Plan, parameters: Tensor) -> bool:
        """Mirror them in a pass."""
        return plan.mirror(parameters)


class AlternatingFlipping(Flipping):
    """Mirrors an image or not in the first epoch, at random, and then in every other epoch.

    So two epochs that follow each other show every image both ways (Jordan, "94% on CIFAR-10 in 3.29 seconds on a
    single GPU", 2024, section 3.6).
    """

    by_record = True

    def __init__(self) -> None:
        super().__init__(0.5)

    def draw_by_record(self, key: Key, records: Tensor, epoch: int, shape: tuple[int, int, int]) -> Tensor:
        """Return bool [n]: which records are mirrored in an epoch."""
        return self.draw(key, records, shape) ^ (epoch % 2 == 1)
