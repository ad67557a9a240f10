"""A batch of images as one picture for people."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SMALLEST, LARGEST = 32, 128  # pixels of a tile's longer side: small enough for 64 of them, large enough to see


def grid(images: Tensor) -> Tensor:
    """Return images [n, c, h, w] as one uint8 picture [1 or 3, height, width], row by row in a square grid.

    Each image is stretched from its darkest to its brightest value to 0..255, over its channels together, so that
    normalised ones are seen with their colours in proportion; a uniform image, or one with values that are not
    finite, is black there. Of two channels the first is shown, of more than three the first three. Tiles are
    enlarged by whole factors, reduced by averaging, and separated by a pixel of grey.
    """
    tiles = _resize(_stretch(images[:, : 3 if images.shape[1] >= 3 else 1].to(torch.float32)))
    n, channels, height, width = tiles.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    picture = torch.full((channels, rows * (height + 1) - 1, columns * (width + 1) - 1), 128, dtype=torch.uint8)
    for i in range(n):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        picture[:, top : top + height, left : left + width] = tiles[i]
    return picture


def _stretch(images: Tensor) -> Tensor:
    images = images.nan_to_num(0.0, 0.0, 0.0)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny) * 255


def _resize(images: Tensor) -> Tensor:
    longest = max(images.shape[2:])
    if longest > LARGEST:
        size = [max(1, side * LARGEST // longest) for side in images.shape[2:]]
        images = interpolate(images, size=size, mode="area")
    elif longest < SMALLEST:
        factor = SMALLEST // longest
        images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return images.round().to(torch.uint8)
