"""Resizes and crops whose windows are whole pixels, with torchvision's definitions (transforms v2, 0.28)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine import Key, UsageError, uniform
from engine.resampling import Resampling, Windows

from .draws import below


def whole(sizes: Tensor, wanted: Tensor) -> Windows:
    """Return windows that are the whole images, resized to ``wanted`` (int64 [n, 2])."""
    return Windows(torch.cat([torch.zeros_like(sizes), sizes], 1).double(), wanted)


def shorter_side(sizes: Tensor, sides: Tensor | int) -> Tensor:
    """Return int64 [n, 2]: sizes whose shorter side is ``sides``, the longer one rounded down as by torchvision."""
    shorter = sizes.amin(1)
    sides = torch.as_tensor(sides).expand(len(sizes))
    scaled = sides[:, None] * sizes // shorter[:, None]
    return torch.where(sizes == shorter[:, None], sides[:, None], scaled)


class Resizing(Resampling):
    """Resizes the shorter side to ``size``, or images to size x width, in training and evaluation alike."""

    def __init__(self, size: int, width: int | None) -> None:
        self.size, self.width = size, width

    def draw_windows(self, key: Key, samples: Tensor, sizes: Tensor) -> Windows:
        """Return the whole images; nothing is drawn."""
        return self.test_windows(sizes)

    def test_windows(self, sizes: Tensor) -> Windows:
        """Return the whole images, resized."""
        if self.width is None:
            return whole(sizes, shorter_side(sizes, self.size))
        return whole(sizes, torch.tensor([self.size, self.width]).expand(len(sizes), 2).clone())


class ScaleJitter(Resampling):
    """Resizes the shorter side to a whole number of pixels, all from the smallest to the largest equally likely."""

    def __init__(self, sizes: Sequence[int], test_size: int | None) -> None:
        if len(sizes) != 2 or not 1 <= sizes[0] <= sizes[1]:
            raise UsageError(
                f"augment.random_shortest_size.sizes={list(sizes)}: give [smallest, largest], in this order, at least 1"
            )
        self.smallest, self.largest = sizes
        self.test_size = test_size or self.smallest

    def draw_windows(self, key: Key, samples: Tensor, sizes: Tensor) -> Windows:
        """Return the whole images, resized at random."""
        drawn = below(uniform(key, samples, 1)[:, 0], self.largest - self.smallest + 1)
        return whole(sizes, shorter_side(sizes, self.smallest + drawn))

    def test_windows(self, sizes: Tensor) -> Windows:
        """Return the whole images, their shorter side ``test_size``."""
        return whole(sizes, shorter_side(sizes, self.test_size))


class CentreCropping(Resampling):
    """Cuts out the middle, at the place that torchvision's CenterCrop rounds to.

    An image that is smaller is refused by a UsageError, or stands in the middle of black with ``pad``.
    """

    def __init__(self, name: str, size: tuple[int, int], pad: bool, test: str) -> None:
        self.name, self.size, self.pad, self.test_is_whole = name, size, pad, test == "whole"

    def draw_windows(self, key: Key, samples: Tensor, sizes: Tensor) -> Windows:
        """Return the middles; nothing is drawn."""
        return self.middles(sizes)

    def test_windows(self, sizes: Tensor) -> Windows:
        """Return the middles, or the whole images as they are."""
        if not self.test_is_whole:
            return self.middles(sizes)
        return Windows(torch.cat([torch.zeros_like(sizes), sizes], 1), sizes, crop=True)

    def middles(self, sizes: Tensor) -> Windows:
        """Return the window in the middle of each image."""
        room = self._room(sizes)
        # Rounded to the even number where it lies between two; but a crop is padded by the smaller half first.
        return self._crop(torch.where(room < 0, -(-room // 2), (room / 2).round()))

    def _room(self, sizes: Tensor) -> Tensor:
        """Return int64 [n, 2]: by how much images are larger than the crop."""
        room = sizes - torch.tensor(self.size)
        if self.pad or bool((room >= 0).all()):
            return room
        height, width = sizes[int((room < 0).any(1).nonzero()[0])].tolist()
        raise UsageError(
            f"augment.{self.name}: an image of {height}x{width} is smaller than the crop of {self.size[0]}x"
            f"{self.size[1]}; put resize before it, or choose a smaller size or augment.{self.name}.pad_if_needed=true"
        )

    def _crop(self, starts: Tensor) -> Windows:
        wanted = torch.tensor(self.size).expand(len(starts), 2).clone()
        return Windows(torch.cat([starts.long(), wanted], 1), wanted, crop=True, reaches=self.pad)


class RandomCropping(CentreCropping):
    """Cuts out a window, every place equally likely; evaluations see the middle, or the whole image.

    With ``pad``, an image that is smaller has as much black on either side as it lacks, as torchvision pads it.
    """

    def draw_windows(self, key: Key, samples: Tensor, sizes: Tensor) -> Windows:
        """Return windows of random places."""
        room = self._room(sizes)
        return self._crop(torch.minimum(room, torch.zeros_like(room)) + below(uniform(key, samples, 2), room.abs() + 1))
