"""A source whose records all fit in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.interfaces import Pictures, Records, Source
from engine.pictures import ADDRESS, BYTES


class InMemory(Source):
    """Gives copies of records held in memory; nothing changes after construction, so any thread may ask.

    images: uint8 [n, channels, height, width]; targets: int64 [n], numbers of ``classes``. The fingerprint covers
    every byte of both.
    """

    def __init__(self, images: Tensor, targets: Tensor, classes: Sequence[str]) -> None:
        count, channels, height, width = images.shape
        if images.dtype != torch.uint8 or targets.dtype != torch.int64 or targets.shape != (count,):
            raise TypeError(f"expected uint8 images and as many int64 targets, got {images.dtype} and {targets.dtype}")
        self.classes = tuple(classes)
        self.shape = (channels, height, width)
        self._images, self._targets = images.contiguous(), targets.contiguous()
        self._first = Pictures.of_pixels(self._images[:1]).table if count and channels in (1, 3) else None
        digest = hashlib.blake2b(repr(tuple(images.shape)).encode(), digest_size=16)
        digest.update(self._images.numpy().data)
        digest.update(self._targets.numpy().data)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._targets)

    def records(self, indices: Sequence[int]) -> Records:
        """Return the records at ``indices``, in that order, as new tensors."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return Records("raw", self._images[rows], self._targets[rows])

    def pictures(self, indices: Tensor) -> tuple[Pictures, Tensor] | None:
        """Return where the images are in memory, and their targets; None where they are neither gray nor colour."""
        if self._first is None:
            return None
        table = self._first.repeat(len(indices), 1)
        table[:, ADDRESS] += indices * table[0, BYTES]
        return Pictures(table, self.shape[0], [self], fit=True), self._targets[indices]
