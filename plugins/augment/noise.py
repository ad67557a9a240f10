"""Normally distributed noise, as torchvision's GaussianNoise adds it to floats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine import Key, uniform
from engine.interfaces import Augmentation

from .draws import as_normal
from .passes import unit_floats

WORD = 2**32 - 1


@dataclass
class Seeds:
    """Where noise comes from: element j of sample i is a function of (key, i, j)."""

    key: Key
    samples: Tensor  # int64 [n] on the CPU

    def normal(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return float32 [n, *shape], standard normal; on another device made there, equal but for rounding."""
        count = 1
        for side in shape:
            count *= side
        draws = 2 * ((count + 1) // 2)
        if device.type == "cpu":
            numbers = uniform(self.key, self.samples, draws)
        else:
            numbers = uniform_on(self.key, self.samples.to(device), draws)
        return as_normal(numbers)[:, :count].view(-1, *shape)


def uniform_on(key: Key, samples: Tensor, draws: int) -> Tensor:
    """Return what ``engine.uniform`` returns, computed on the device of ``samples``.

    Philox4x32-10 (Salmon et al. 2011) in int64: products of 32-bit words wrap around, and their halves are masked out.
    """
    blocks = torch.arange((draws + 3) // 4, device=samples.device)
    words = [samples[:, None] & WORD, samples[:, None] >> 32 & WORD, blocks[None], torch.zeros_like(blocks[None])]
    low, high = key.value & WORD, key.value >> 32
    for _ in range(10):
        first, second = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
        words = [
            (second >> 32 & WORD) ^ words[1] ^ low, second & WORD,
            (first >> 32 & WORD) ^ words[3] ^ high, first & WORD,
        ]  # fmt: skip
        low, high = (low + 0x9E3779B9) & WORD, (high + 0xBB67AE85) & WORD
    drawn = torch.stack(torch.broadcast_tensors(*words), 2).flatten(1)[:, :draws]
    return (drawn >> 8).to(torch.float32) * 2.0**-24


class AddedNoise(Augmentation):
    """Adds ``mean`` + ``sigma`` times a standard normal number to every pixel of every channel."""

    def __init__(self, mean: float, sigma: float, clip: bool) -> None:
        self.mean, self.sigma, self.clip = mean, sigma, clip

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Seeds:
        """Return what the noise is made of."""
        return Seeds(key, samples.clone())

    def apply(self, images: Tensor, targets: Tensor, parameters: Seeds) -> tuple[Tensor, Tensor]:
        """Add the noise; uint8 becomes float32 from 0 to 1."""
        noise = parameters.normal(tuple(images.shape[1:]), images.device)
        images = unit_floats(images)
        images = images + (self.mean + self.sigma * noise).to(images.dtype)
        return images.clamp_(0, 1) if self.clip else images, targets
