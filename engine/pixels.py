"""What a network sees of a pixel: which number each of its channels holds for a byte of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.interfaces import Augmentation, Source


@dataclass(frozen=True)
class Pixels:
    """What a network's channels hold for a byte of 0 and of 255, and which of the data's channels each is made of.

    size: height and width of its images.
    """

    black: Sequence[float]
    white: Sequence[float]
    order: Sequence[int]
    size: Sequence[int]


def pixels_of(source: Source, augmentations: Mapping[str, Augmentation]) -> Pixels | None:
    """Return what an evaluation makes of a source's pixels, found by preparing images of one colour.

    None where a channel is not made of one of the data's: images that are no bytes, or channels that are mixed.
    """
    records = source.records([0])
    if isinstance(records.images, Tensor) and records.images.dtype != torch.uint8:
        return None
    channels, height, width = source.shape
    colours = torch.cat([torch.zeros(1, channels), torch.ones(1, channels), torch.eye(channels)])  # black, white, pure
    images = (colours * 255).to(torch.uint8)[:, :, None, None].repeat(1, 1, height, width)
    for augmentation in augmentations.values():
        images = augmentation.test(images)
    values = images[:, :, images.shape[2] // 2, images.shape[3] // 2].double()
    if images.dtype == torch.uint8:
        values /= 255
    black, white, pure = values[0], values[1], values[2:]
    sources = (pure != black).int()  # [channel of the data, channel of the network]
    if not bool(values.isfinite().all()) or not bool((sources.sum(0) == 1).all()):
        return None
    return Pixels(black.tolist(), white.tolist(), sources.argmax(0).tolist(), list(images.shape[2:]))
