"""The mean and covariance of the colours of many images, exact whatever the order they come in."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

CHUNK = 1 << 20  # pixels: 24 MB of float64 colours


@dataclass
class Colour:
    """Whole sums over pixels: how many, of each channel, of each product of two channels."""

    pixels: int
    sums: np.ndarray
    products: np.ndarray

    @classmethod
    def none(cls, channels: int) -> Colour:
        """Return the sums over no pixel."""
        return cls(0, np.zeros(channels, np.int64), np.zeros((channels, channels), np.int64))

    def add(self, pixels: np.ndarray) -> None:
        """Take in uint8 pixels [..., channels], contiguous."""
        flat = torch.from_numpy(pixels)
        for part in flat.view(-1, len(self.sums)).split(CHUNK):
            values = part.T.double()  # sums of whole numbers are exact below 2^53, and a chunk's stay below 2^36
            self.sums += values.sum(1).long().numpy()
            self.products += (values @ values.T).long().numpy()
        self.pixels += flat.numel() // len(self.sums)

    def join(self, other: Colour) -> None:
        """Take in the sums over other pixels."""
        self.pixels += other.pixels
        self.sums += other.sums
        self.products += other.products

    def facts(self) -> dict[str, Any]:
        """Return the count of pixels, their mean [c] and their covariance [c, c] (divided by the count), of 0..255."""
        mean = [Fraction(int(total), self.pixels) for total in self.sums]
        covariance = [
            [float(Fraction(int(product), self.pixels) - mean[i] * mean[j]) for j, product in enumerate(row)]
            for i, row in enumerate(self.products)
        ]
        return {"pixels": self.pixels, "mean": [float(value) for value in mean], "covariance": covariance}
