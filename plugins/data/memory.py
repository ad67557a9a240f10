"""A source whose records all fit in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.interfaces import Records, Source


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
