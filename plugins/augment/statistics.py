"""Mean and covariance of a source's colours."""

from __future__ import annotations

import torch
from torch import Tensor

from engine import Key, uniform
from engine.interfaces import Source
from engine.preparation import read

MOST_RAW = 60_000  # records read for the statistics: all of MNIST and CIFAR, in tenths of a second
MOST_ENCODED = 2_000  # decoding a photograph takes milliseconds
CHUNK = 100  # records: 15 million float64 values of 224x224 images


def moments(source: Source) -> tuple[Tensor, Tensor]:
    """Return the mean [c] and covariance [c, c] over a source's pixels, float64, uint8 pixels as 0..1.

    Those that the source knows, else over all records, up to 60,000, or 2,000 where they must be decoded (to the
    source's shape); over that many drawn from all parts of a larger source. Always the same for the same source.
    """
    if source.colour is not None:
        mean = torch.tensor(source.colour["mean"], dtype=torch.float64)
        return mean / 255, torch.tensor(source.colour["covariance"], dtype=torch.float64) / 255**2
    encoded = source.records([0]).encoding == "encoded"
    indices = _spread(len(source), MOST_ENCODED if encoded else MOST_RAW)
    channels = source.shape[0]
    total = torch.zeros(channels, dtype=torch.float64)
    products = torch.zeros(channels, channels, dtype=torch.float64)
    pixels = 0
    for first in range(0, len(indices), CHUNK):
        images, _ = read(source, indices[first : first + CHUNK])
        values = images.transpose(0, 1).reshape(channels, -1).double()
        total += values.sum(1)  # of uint8 pixels exact: below 2^53
        products += values @ values.T
        pixels += values.shape[1]
    mean = total / pixels
    covariance = products / pixels - mean[:, None] * mean
    unit = 255 if images.dtype == torch.uint8 else 1
    return mean / unit, covariance / unit**2


def statistics(source: Source) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and standard deviation, float64 [c], of what ``moments`` looks at."""
    mean, covariance = moments(source)
    return mean, covariance.diagonal().clamp(min=0).sqrt()


def _spread(length: int, most: int) -> list[int]:
    """Return all indices, or one drawn from each of ``most`` equal stretches, always the same ones."""
    if length <= most:
        return list(range(length))
    stretches = torch.arange(most)
    places = stretches + uniform(Key.of(0).at("normalize"), stretches, 1)[:, 0].double()
    return (places * (length / most)).long().clamp_(max=length - 1).tolist()
