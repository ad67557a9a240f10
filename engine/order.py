"""In which order an epoch takes the records: a pure function of (seed, epoch), whoever asks for how much of it.

``full`` is a uniformly random permutation. ``blocks`` trades some of its quality for reading in large pieces: blocks of
consecutive records come in random order, and the records of some consecutive ones of these, a window, are shuffled
together. docs/loading.md says what that does to batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from engine.randomness import Key, permutation

FULL, BLOCKS = "full", "blocks"


@dataclass(frozen=True)
class Shuffle:
    """How thoroughly to shuffle. block: records of a block; mixed: blocks of a window; of no account for "full"."""

    kind: str = FULL
    block: int = 256
    mixed: int = 32

    @property
    def window(self) -> int:
        """Records that are shuffled together (fewer in the window with the short last block, and in the last one)."""
        return self.block * self.mixed


FULLY = Shuffle()


class Order:
    """The order of ``length`` records in each epoch, all of them once; the last two epochs asked for are kept."""

    def __init__(self, key: Key, length: int) -> None:
        self.key, self.length = key.at("order"), length
        self.records = lru_cache(maxsize=2)(self._records)

    def _records(self, epoch: int) -> Tensor:
        """Return the numbers of the records, int64 [length], in the order of an epoch."""
        return permutation(self.key.at(epoch), self.length)

    def ahead(self, epoch: int, place: int) -> list[int]:
        """Return the blocks to have read once the record at ``place`` of an epoch's order is in use, soonest first.

        None of a full order, which has no blocks.
        """
        return []


class BlockOrder(Order):
    """Blocks in random order, the records of each window of them shuffled together."""

    def __init__(self, key: Key, length: int, shuffle: Shuffle) -> None:
        super().__init__(key, length)
        self.shuffle = shuffle
        self.blocks = lru_cache(maxsize=3)(self._blocks)

    def _blocks(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the blocks in their order and, for each window, the place behind its last record."""
        block, mixed = self.shuffle.block, self.shuffle.mixed
        blocks = permutation(self.key.at(epoch, "blocks"), -(-self.length // block))
        ends = torch.clamp(self.length - blocks * block, max=block).cumsum(0)
        last = torch.arange(mixed - 1, len(blocks) + mixed - 1, mixed).clamp(max=len(blocks) - 1)
        return blocks, ends[last]

    def _records(self, epoch: int) -> Tensor:
        blocks, ends = self.blocks(epoch)
        records = (blocks[:, None] * self.shuffle.block + torch.arange(self.shuffle.block)).flatten()
        records = records[records < self.length]
        # What a random permutation of all places does to those of each window alone is a random permutation of these.
        places = permutation(self.key.at(epoch, "records"), self.length)
        return records[places[torch.argsort(torch.searchsorted(ends, places, right=True), stable=True)]]

    def ahead(self, epoch: int, place: int) -> list[int]:
        """Return as large a part of the next window's blocks as ``place`` is through with its own window."""
        blocks, ends = self.blocks(epoch)
        window = int(torch.searchsorted(ends, place, right=True))
        first = int(ends[window - 1]) if window else 0
        through = (place + 1 - first) / (int(ends[window]) - first)
        following = blocks[(window + 1) * self.shuffle.mixed :] if window + 1 < len(ends) else self.blocks(epoch + 1)[0]
        following = following[: self.shuffle.mixed]
        return following[: int(through * len(following))].tolist()


def order_of(shuffle: Shuffle, key: Key, length: int) -> Order:
    """Return the order of a data set's records."""
    return BlockOrder(key, length, shuffle) if shuffle.kind == BLOCKS else Order(key, length)
