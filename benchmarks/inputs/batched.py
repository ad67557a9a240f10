"""CIFAR's augmentation with torch alone, many images at a time on the CPU: what fast trainings do by hand.

All images are padded once. ``Gathered`` works on a batch of bytes; the two others crop and mirror the whole epoch
before its first batch, as Keller Jordan's airbench does (github.com/KellerJordan/cifar10-airbench): images of the same
shift are moved together, first down, then sideways, so an epoch takes as many large copies as there are shifts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from . import CIFAR_MEAN, CIFAR_STD

PADDING, SIDE, CUT = 4, 32, 8


class Peer(Protocol):
    """Gives batches of augmented images; made of uint8 images [n, 3, 32, 32] and the size of a batch."""

    def __init__(self, images: np.ndarray, batch: int) -> None: ...

    def epoch(self) -> Iterator[Tensor]:
        """Yield an epoch's batches, float32 [batch, 3, 32, 32], the last one perhaps smaller."""
        ...


def constants() -> tuple[Tensor, Tensor]:
    """Return what a byte is multiplied with, and what is added then, [1, 3, 1, 1] each."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR_MEAN, CIFAR_STD))
    return 1 / (255 * std), -mean / std


def crop_all(padded: Tensor, shifts: Tensor) -> Tensor:
    """Return the 32x32 window of each padded image [n, 3, 40, 40] at its shift, int64 [n, 2] of (down, right)."""
    n = len(padded)
    rows = padded.new_empty(n, 3, SIDE, SIDE + 2 * PADDING)
    out = padded.new_empty(n, 3, SIDE, SIDE)
    for shift in range(2 * PADDING + 1):
        chosen = (shifts[:, 0] == shift).nonzero()[:, 0]
        rows.index_copy_(0, chosen, padded[:, :, shift : shift + SIDE].index_select(0, chosen))
    for shift in range(2 * PADDING + 1):
        chosen = (shifts[:, 1] == shift).nonzero()[:, 0]
        out.index_copy_(0, chosen, rows[..., shift : shift + SIDE].index_select(0, chosen))
    return out


def crop_some(padded: Tensor, chosen: Tensor, shifts: Tensor) -> Tensor:
    """Return such windows of the ``chosen`` images alone, gathered row by row."""
    across = SIDE + 2 * PADDING
    windows = padded.view(-1).unfold(0, SIDE, 1)  # all runs of 32 pixels, as a view
    planes = (chosen[:, None] * 3 + torch.arange(3))[:, :, None] * across
    rows = (planes + shifts[:, :1, None] + torch.arange(SIDE)) * across + shifts[:, 1:, None]
    return windows.index_select(0, rows.view(-1)).view(len(chosen), 3, SIDE, SIDE)


def flip_some(images: Tensor) -> Tensor:
    """Return images, every second of them at random mirrored left to right."""
    chosen = (torch.rand(len(images)) < 0.5).nonzero()[:, 0]
    return images.index_copy_(0, chosen, images.index_select(0, chosen).flip(3))


def cut_out(images: Tensor, centres: Tensor) -> Tensor:
    """Set the square of 8x8 around each image's centre, int64 [n, 2], to 0, in place, as far as it is inside."""
    places = torch.arange(SIDE)
    begin = centres - CUT // 2
    within = [(places >= begin[:, k, None]) & (places < begin[:, k, None] + CUT) for k in (0, 1)]
    return images.masked_fill_((within[0][:, :, None] & within[1][:, None, :])[:, None], 0)


class Gathered(Peer):
    """Bytes of one batch at a time: gathered in their windows, mirrored, then made numbers, normalised and cut."""

    def __init__(self, images: np.ndarray, batch: int) -> None:
        self._padded, self._batch = pad(torch.from_numpy(images), (PADDING,) * 4), batch
        self._scale, self._shift = constants()

    def epoch(self) -> Iterator[Tensor]:
        """Yield an epoch's batches."""
        for chosen in torch.randperm(len(self._padded)).split(self._batch):
            images = crop_some(self._padded, chosen, torch.randint(2 * PADDING + 1, (len(chosen), 2)))
            numbers = flip_some(images).to(torch.float32).mul_(self._scale).add_(self._shift)
            yield cut_out(numbers, torch.randint(SIDE, (len(chosen), 2)))


class WholeEpoch(Peer):
    """The whole epoch in float32, normalised once for all epochs: cropped, mirrored and cut before its first batch."""

    def __init__(self, images: np.ndarray, batch: int) -> None:
        scale, shift = constants()
        black = torch.zeros(1, 3, 1, 1)  # a border's colour before it is normalised
        self._padded = pad(torch.from_numpy(images) - black, (PADDING,) * 4).mul_(scale).add_(shift)
        self._batch = batch

    def epoch(self) -> Iterator[Tensor]:
        """Yield an epoch's batches."""
        n = len(self._padded)
        images = flip_some(crop_all(self._padded, torch.randint(2 * PADDING + 1, (n, 2))))
        cut_out(images, torch.randint(SIDE, (n, 2)))
        for chosen in torch.randperm(n).split(self._batch):
            yield images.index_select(0, chosen)


class WholeEpochOfBytes(Peer):
    """The whole epoch cropped and mirrored as bytes, a quarter of the memory; a batch is then made numbers and cut."""

    def __init__(self, images: np.ndarray, batch: int) -> None:
        self._padded, self._batch = pad(torch.from_numpy(images), (PADDING,) * 4), batch
        self._scale, self._shift = constants()

    def epoch(self) -> Iterator[Tensor]:
        """Yield an epoch's batches."""
        n = len(self._padded)
        images = flip_some(crop_all(self._padded, torch.randint(2 * PADDING + 1, (n, 2))))
        for chosen in torch.randperm(n).split(self._batch):
            numbers = images.index_select(0, chosen).to(torch.float32).mul_(self._scale).add_(self._shift)
            yield cut_out(numbers, torch.randint(SIDE, (len(chosen), 2)))
