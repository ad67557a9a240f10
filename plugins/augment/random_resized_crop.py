"""Windows of random area and shape, resized (Szegedy et al. 2015, section 6), as torchvision's RandomResizedCrop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine import Key, UsageError, uniform
from engine.resampling import Resampling, Windows

from .crops import shorter_side
from .draws import below, between, checked, log_between

TRIES = 10


def random_windows(
    numbers: Tensor, sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return int64 [n, 2] and bool [n]: heights and widths drawn for images of ``sizes``, and whether any fits.

    numbers: uniform [n, 2 x TRIES]. A try draws the area uniformly and the ratio of its sides (width by height) with a
    uniform logarithm; the first that lies within the image counts.
    """
    tall, wide = sizes[:, :1], sizes[:, 1:]
    areas = (tall * wide) * between(numbers[:, :TRIES], *scale)
    ratios = log_between(numbers[:, TRIES:], *ratio)
    widths, heights = (areas * ratios).sqrt().round().long(), (areas / ratios).sqrt().round().long()
    fits = (widths > 0) & (widths <= wide) & (heights > 0) & (heights <= tall)
    first = fits.int().argmax(1, keepdim=True)
    return torch.cat([heights.gather(1, first), widths.gather(1, first)], 1), fits.any(1)


def central(sizes: Tensor, ratio: tuple[float, float]) -> Tensor:
    """Return int64 [n, 2]: the largest heights and widths in images whose ratio is within its limits."""
    tall, wide = sizes[:, 0].double(), sizes[:, 1].double()
    flat, upright = wide / tall > ratio[1], wide / tall < ratio[0]
    heights = torch.where(upright, (wide / ratio[0]).round().clamp(min=1), tall)
    widths = torch.where(flat, (tall * ratio[1]).round().clamp(min=1), wide)
    return torch.stack([heights, widths], 1).long()


class RandomResizedCropping(Resampling):
    """Resizes a random window to ``size``; evaluations see the middle of the resized image.

    The window is whole pixels, and only they are used. If ten tries give none within the image, it is the largest one
    at the centre whose ratio is allowed.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: Sequence[float],
        ratio: Sequence[float],
        test: tuple[int, int],
        test_resize: int | None,
    ) -> None:
        self.size, self.test_size = size, test
        self.scale = checked("random_resized_crop.scale", scale, 0, 1)
        self.ratio = checked("random_resized_crop.ratio", ratio, 1e-6, float("inf"))
        self.test_resize = test_resize or round(max(test) * 256 / 224)
        if self.test_resize < max(test):
            raise UsageError(
                f"augment.random_resized_crop.test_resize={test_resize}: an evaluation cuts {test[0]}x{test[1]} pixels "
                f"out of what it resizes to, so it is at least {max(test)}"
            )

    def draw_windows(self, key: Key, samples: Tensor, sizes: Tensor) -> Windows:
        """Return random windows."""
        numbers = uniform(key, samples, 2 * TRIES + 2)
        drawn, fits = random_windows(numbers[:, :-2], sizes, self.scale, self.ratio)
        fallback = central(sizes, self.ratio)
        extents = torch.where(fits[:, None], drawn, fallback)
        room = sizes - extents
        starts = torch.where(fits[:, None], below(numbers[:, -2:], room + 1), room // 2)
        return Windows(torch.cat([starts, extents], 1).double(), _all(self.size, sizes))

    def test_windows(self, sizes: Tensor) -> Windows:
        """Return the middles of images whose shorter side is ``test_resize`` pixels."""
        resized = shorter_side(sizes, self.test_resize).double()
        extents = _all(self.test_size, sizes)
        # What a crop of the resized image shows, in pixels of the image itself: one window instead of two.
        pixel = sizes / resized
        starts = ((resized - extents) / 2).round() * pixel
        return Windows(torch.cat([starts, extents * pixel], 1), extents, beyond=True)


def _all(size: tuple[int, int], sizes: Tensor) -> Tensor:
    return torch.tensor(size).expand(len(sizes), 2).clone()
