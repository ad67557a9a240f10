"""Pictures that are computed instead of stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine import Key, Records, uniform
from engine.interfaces import Source

MARGIN = 5  # a shape's centre is at least so many pixels from the edge
RADIUS = 4


class BlobSource(Source):
    """Image i shows shape i mod 3 at a place, and in noise, that depend on (split, i) alone.

    As nothing is remembered, ``records`` may be called from any thread and in any order.
    """

    classes = ("disc", "square", "cross")

    def __init__(self, split: str, length: int, size: int, noise: float) -> None:
        self.shape = (1, size, size)
        # Everything that the images depend on, so that a checkpoint is not resumed with others.
        self.fingerprint = f"blobs-1-{split}-{length}-{size}-{noise}"
        self._length, self._noise = length, noise
        self._key = Key.of(0).at("blobs", split)

    def __len__(self) -> int:
        return self._length

    def records(self, indices: Sequence[int]) -> Records:
        """Draw the images at ``indices``: uint8 [n, 1, size, size], with their shapes as targets."""
        numbers = torch.tensor(list(indices), dtype=torch.int64)
        targets = numbers % 3
        size = self.shape[1]
        centres = MARGIN + uniform(self._key.at("centre"), numbers, 2) * (size - 1 - 2 * MARGIN)
        noise = uniform(self._key.at("noise"), numbers, size * size).view(-1, size, size)
        pixels = torch.maximum(shapes(targets, centres, size), self._noise * noise)
        return Records("raw", (pixels * 255).to(torch.uint8)[:, None], targets)


def shapes(kinds: Tensor, centres: Tensor, size: int) -> Tensor:
    """Return [n, size, size], 1.0 inside each shape and 0.0 outside: kind 0 a disc, 1 a square, 2 a cross."""
    down = torch.arange(size)[:, None] - centres[:, 0, None, None]
    right = torch.arange(size)[None, :] - centres[:, 1, None, None]
    down, right = down.abs(), right.abs()
    inside = torch.stack(
        [
            down.square() + right.square() <= RADIUS**2,
            torch.maximum(down, right) <= RADIUS,
            (torch.minimum(down, right) <= 1) & (torch.maximum(down, right) <= RADIUS),
        ]
    )
    return inside[kinds, torch.arange(len(kinds))].float()
