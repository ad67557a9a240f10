"""Normalisation of each channel, with given statistics or those of the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine import Key, UsageError, uniform
from engine.interfaces import Augmentation, Source
from engine.loader import read

MOST_RAW = 60_000  # records read for the statistics: all of MNIST and CIFAR, in tenths of a second
MOST_ENCODED = 2_000  # decoding a photograph takes milliseconds
CHUNK = 100  # records: 15 million float64 values of 224x224 images


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (images - mean) / std in float32; uint8 images [n, c, h, w] count as 0..1, floats as they are.

    mean, std: float64 [c].
    """
    scale = (1 / (_unit(images) * std)).float().view(-1, 1, 1)
    shift = (-mean / std).float().view(-1, 1, 1)
    # A copy even of float32, because augmentations never edit what they are given.
    return images.to(torch.float32, copy=True).mul_(scale).add_(shift)


def statistics(source: Source) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and standard deviation over a source's pixels, float64 [c], uint8 pixels as 0..1.

    Over all records, up to 60,000, or 2,000 where they must be decoded (to the source's shape); over that many
    drawn from all parts of a larger source. Always the same for the same source.
    """
    encoded = source.records([0]).encoding == "encoded"
    indices = _spread(len(source), MOST_ENCODED if encoded else MOST_RAW)
    channels = source.shape[0]
    total, squares = torch.zeros(2, channels, dtype=torch.float64)
    pixels = 0
    for first in range(0, len(indices), CHUNK):
        images, _ = read(source, indices[first : first + CHUNK])
        values = images.transpose(0, 1).reshape(channels, -1).double()
        total += values.sum(1)  # of uint8 pixels exact: below 2^53
        squares += values.square_().sum(1)
        pixels += values.shape[1]
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp_(min=0).sqrt()
    unit = _unit(images)
    return mean / unit, std / unit


def _unit(images: Tensor) -> int:
    """Return what counts as 1: white, or the number itself."""
    return 255 if images.dtype == torch.uint8 else 1


def _spread(length: int, most: int) -> list[int]:
    """Return all indices, or one drawn from each of ``most`` equal stretches, always the same ones."""
    if length <= most:
        return list(range(length))
    stretches = torch.arange(most)
    places = stretches + uniform(Key.of(0).at("normalize"), stretches, 1)[:, 0].double()
    return (places * (length / most)).long().clamp_(max=length - 1).tolist()


class Normalization(Augmentation):
    """Shifts and scales each channel, in training and evaluation alike."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std):
            raise UsageError(
                f"augment.normalize: {len(mean)} mean and {len(std)} std values; give one of each per channel, or "
                "neither for the training images' own"
            )
        if any(value <= 0 for value in std):
            raise UsageError(f"augment.normalize.std={list(std)}: every standard deviation must be above 0")
        self.mean, self.std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)

    def prepare(self, training: Callable[[], Source]) -> None:
        """Compute the statistics, unless they were given. Raises UsageError if a channel is constant."""
        if len(self.mean) > 0:
            return
        self.mean, self.std = statistics(training())
        if bool((self.std <= 1e-7 * self.mean.abs()).any()):
            raise UsageError(
                f"augment.normalize: a channel of the training images is constant (std {self.std.tolist()}); give "
                "augment.normalize.mean and augment.normalize.std"
            )

    def apply(self, images: Tensor, targets: Tensor, parameters: None) -> tuple[Tensor, Tensor]:
        """Normalise the images."""
        return self.test(images), targets

    def test(self, images: Tensor) -> Tensor:
        """Normalise the images. Raises UsageError if there is not one mean for each of their channels."""
        if len(self.mean) not in (1, images.shape[1]):
            raise UsageError(
                f"augment.normalize.mean has {len(self.mean)} values, but the images have {images.shape[1]} channels: "
                "give one per channel"
            )
        return normalize(images, self.mean, self.std)
