"""What a network is given for the bytes of an image: a value for each channel and pixel value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pixels:
    """values: float32 [channels, 256], what stands for a pixel of 0 to 255 in each channel."""

    values: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Return uint8 images [n, c, h, w] as the network takes them, float32."""
        channels = torch.arange(len(self.values)).view(1, -1, 1, 1)
        return self.values[channels, images.long()]

    def grid(self) -> tuple[float, int] | None:
        """Return (step, zero) if every value is (pixel - zero) * step, exactly, with a power of two as step."""
        step = float(self.values[0, 1] - self.values[0, 0])
        if not (0 < step < math.inf) or math.frexp(step)[0] != 0.5:
            return None
        zero = -float(self.values[0, 0]) / step
        if zero != round(zero):
            return None
        expected = (torch.arange(256, dtype=torch.float64) - zero) * step
        return (step, round(zero)) if bool((self.values.double() == expected).all()) else None
