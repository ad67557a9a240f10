"""Images and labels mixed with those of others: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from engine import Key, uniform
from engine.interfaces import Augmentation, Source
from engine.plan_on_tensors import inside

from .draws import below
from .passes import unit_floats


@dataclass
class Mixture:
    """What is drawn for a batch of n images: partners, rows of the batch, and how much of an image is its own.

    boxes: where pixels are the partner's, (top, left, bottom, right), empty if nowhere; None where images are blended.
    """

    partners: Tensor  # int64 [n]
    shares: Tensor  # float64 [n]
    boxes: Tensor | None = None  # int64 [n, 4]


def beta(numbers: Tensor, alpha: float) -> Tensor:
    """Return uniform numbers of [0, 1) made float64 numbers of Beta(alpha, alpha), by its inverse distribution."""
    from scipy.special import betaincinv  # takes a while, and only those who mix need it

    middles = numbers.double() + 2.0**-25  # of the stretches that multiples of 2^-24 stand for: never 0 nor 1
    return torch.from_numpy(betaincinv(alpha, alpha, middles.numpy()))


def blend(values: Tensor, mixture: Mixture) -> Tensor:
    """Return share x value + (1 - share) x partner's value for each row of a float tensor."""
    shares = mixture.shares.to(values.device, values.dtype).view(-1, *[1] * (values.ndim - 1))
    return shares * values + (1 - shares) * values[mixture.partners.to(values.device)]


class Mixing(Augmentation):
    """Mixes every image with another of its group: consecutive samples of the training stream.

    Partners are as far apart in all of a group, at a distance that is drawn for it. An image is left alone with the
    chance 1 - ``probability``.
    """

    def __init__(self, alpha: float, probability: float, group: int) -> None:
        self.alpha, self.probability, self.group = alpha, probability, group
        self.classes = 0

    def prepare(self, training: Callable[[], Source]) -> None:
        """Learn how many classes there are: class numbers become shares of them."""
        self.classes = len(training().classes)

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Mixture:
        """Return partners and shares; the partner of a sample is a function of its group."""
        places = torch.arange(len(samples))
        firsts = places - places % self.group
        distances = 1 + below(uniform(key.at("partner"), samples[firsts], 1)[:, 0], self.group - 1)
        partners = firsts + (places - firsts + distances) % self.group
        numbers = uniform(key.at("share"), samples, 2)
        shares = torch.where(numbers[:, 1] < self.probability, beta(numbers[:, 0], self.alpha), 1.0)
        return Mixture(partners, shares)

    def labels(self, targets: Tensor, mixture: Mixture) -> Tensor:
        """Return targets mixed by shares: float32 [n, classes] of class numbers, else in their own float type."""
        if not targets.is_floating_point():
            targets = one_hot(targets, self.classes).to(torch.float32)
        return blend(targets, mixture)


class Blending(Mixing):
    """mixup: weighted means of two images, the weight Beta(alpha, alpha), drawn for each image."""

    def apply(self, images: Tensor, targets: Tensor, parameters: Mixture) -> tuple[Tensor, Tensor]:
        """Return blended images, uint8 as float32 from 0 to 1, and soft labels."""
        return blend(unit_floats(images), parameters), self.labels(targets, parameters)


class Pasting(Mixing):
    """CutMix: a box of the partner's pixels in place of one's own, placed as torchvision's CutMix places it.

    Before what lies outside is cut off its area is a part 1 - share of the image's, and its shape the image's. The
    share is then what is left of the image's own pixels.
    """

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Mixture:
        """Return partners, boxes and shares."""
        mixture = super().draw(key, samples, shape)
        sides = torch.tensor(shape[1:])
        centres = below(uniform(key.at("centre"), samples, 2), sides)
        halves = (0.5 * (1 - mixture.shares).sqrt()[:, None] * sides).long()
        starts = (centres - halves).clamp(min=0)
        ends = torch.minimum(centres + halves, sides)
        covered = (ends - starts).prod(1) / (shape[1] * shape[2])
        return Mixture(mixture.partners, 1 - covered.double(), torch.cat([starts, ends], 1))

    def apply(self, images: Tensor, targets: Tensor, parameters: Mixture) -> tuple[Tensor, Tensor]:
        """Return images with boxes of others, in their type, and soft labels."""
        assert parameters.boxes is not None, "drawn by Pasting"
        chosen = inside(parameters.boxes.to(images.device), images.shape[2], images.shape[3])
        pasted = torch.where(chosen[:, None], images[parameters.partners.to(images.device)], images)
        return pasted, self.labels(targets, parameters)
