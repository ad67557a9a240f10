"""Blended images ("mixup: Beyond Empirical Risk Minimization", Zhang et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from engine import Key
from engine.interfaces import Augmentation, Source


@dataclass
class Mixture:
    """What is drawn for a batch of n images: each one's partner (a row of the batch) and its own share."""

    partners: Tensor  # int64 [n]
    shares: Tensor  # float32 [n], 0 to 1


def mix(values: Tensor, mixture: Mixture) -> Tensor:
    """Return share x value + (1 - share) x partner's value for each row of a float tensor."""
    shares = mixture.shares.to(values.device).view(-1, *[1] * (values.ndim - 1))
    return shares * values + (1 - shares) * values[mixture.partners]


class Blending(Augmentation):
    """Blends every image with another one of its group, and their labels in the same proportion.

    A group is ``group`` consecutive samples of the training stream. ``draw`` depends on nothing but the key and
    the group, so a sample meets the same partner for any number of loader threads and processes; the engine
    refuses a batch size that is no multiple of the group.
    """

    def __init__(self, alpha: float, group: int) -> None:
        self.alpha, self.group = alpha, group
        self.classes = 0

    def prepare(self, training: Callable[[], Source]) -> None:
        """Learn how many classes there are: labels become shares of them."""
        self.classes = len(training().classes)

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Mixture:
        """Draw, for each group, how far away partners are and how much of an image is its own."""
        partners, shares = [], []
        for first in range(0, len(samples), self.group):
            # A generator of its own for each group: nothing is remembered from one draw to the next.
            rng = np.random.default_rng(key.at(int(samples[first])).value)
            distance = int(rng.integers(1, self.group))
            partners += [first + (place + distance) % self.group for place in range(self.group)]
            shares += [float(rng.beta(self.alpha, self.alpha))] * self.group
        return Mixture(torch.tensor(partners), torch.tensor(shares))

    def apply(self, images: Tensor, targets: Tensor, parameters: Mixture) -> tuple[Tensor, Tensor]:
        """Return blended images, float32, and soft labels [n, classes], float32."""
        if images.dtype == torch.uint8:
            images = images.float() / 255  # the engine's convention: once pixels are floats, they are 0 to 1
        if not targets.is_floating_point():
            targets = one_hot(targets, self.classes).float()
        return mix(images, parameters), mix(targets, parameters)
