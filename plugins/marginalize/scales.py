"""Whole images in several sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from engine import UsageError
from engine.interfaces import Marginalization


def resize(images: Tensor, shorter: int) -> Tensor:
    """Return images [n, c, h, w] with their shorter side of so many pixels, the other in proportion, rounded down.

    Bilinear with antialiasing: within a grey level of Pillow's. Images of that size already are returned as they are.
    """
    height, width = images.shape[2:]
    short = min(height, width)
    size = (height * shorter // short, width * shorter // short)
    if size == (height, width):
        return images
    # torch resizes half precision on no CPU.
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    resized = functional.interpolate(wide, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.to(images.dtype)


class Scales(Marginalization):
    """Gives the whole images, resized to each of some shorter sides."""

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes:
            raise UsageError(
                "marginalize.multi_scale.sizes is empty: give shorter sides, as [224,256], or leave multi_scale out"
            )
        for size in sizes:
            if size < 1:
                raise UsageError(f"marginalize.multi_scale.sizes: {size} is no size, it must be at least 1")
            if list(sizes).count(size) > 1:
                raise UsageError(f"marginalize.multi_scale.sizes: {size} is named twice; each counts the same")
        self.sizes = list(sizes)

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """Yield a view of each size."""
        for size in self.sizes:
            yield resize(images, size)
