"""A data set one of whose images is not a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.interfaces import Records, Source
from engine.options import Data


class Spoilt(Source):
    """Noise in which one image is not a number."""

    classes, shape, fingerprint = ("top", "middle", "bottom"), (1, 6, 6), "spoilt"

    def __len__(self) -> int:
        return 20

    def records(self, indices: Sequence[int]) -> Records:
        records = torch.tensor(list(indices))
        images = torch.sin(torch.arange(36.0) * (1 + records[:, None])).view(-1, 1, 6, 6)
        images[records == 7] = float("nan")
        return Records("tensor", images, records % 3)


@dataclass
class SpoiltData(Data):
    """Spoilt noise."""

    threads: int = 0

    def build(self, split: str) -> Source:
        return Spoilt()
