"""Features as a source that loaders read: rows of a mapped file in the places of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.interfaces import Augmentation, Records, Source
from engine.randomness import Key


class FeatureSource(Source):
    """Records whose images are features [views x records, c, h, w] of another source's, view after view.

    ``records`` gives the first view. Of several it gives none, only zeros in their places: ``ViewOfEpoch`` puts an
    epoch's there, so that the others are not read.
    """

    def __init__(self, source: Source, features: Tensor, targets: Tensor) -> None:
        self.classes, self.fingerprint = source.classes, source.fingerprint
        self.shape = (features.shape[1], features.shape[2], features.shape[3])
        self.features, self.targets = features, targets
        self._length = len(source)
        self._named = source

    def __len__(self) -> int:
        return self._length

    def name_of(self, index: int) -> str:
        """Name a record as the source does."""
        return self._named.name_of(index)

    def records(self, indices: Sequence[int]) -> Records:
        """Return the features at ``indices``, in that order."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        one = len(self.features) == self._length
        images = self.features.index_select(0, rows) if one else torch.zeros(len(rows), 1, 1, 1)
        return Records("tensor", images, self.targets.index_select(0, rows))


class ViewOfEpoch(Augmentation):
    """Gives records of an epoch the features and targets of the view whose turn it is: one after the other."""

    by_record = True

    def __init__(self, source: FeatureSource) -> None:
        self._source = source
        self._views = len(source.features) // len(source)

    def draw_by_record(self, key: Key, records: Tensor, epoch: int, shape: tuple[int, int, int]) -> Tensor:
        """Return the rows of the records' features; nothing is drawn."""
        return records + epoch % self._views * len(self._source)

    def apply(self, images: Tensor, targets: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and targets in these rows."""
        return self._source.features.index_select(0, parameters), self._source.targets.index_select(0, parameters)
