"""Making the batches of a step out of their samples, in this process or wherever its recipe is carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.blocks import BlockSource
from engine.chain import Samples
from engine.errors import UsageError
from engine.host_to_device import Layout, Unfinished
from engine.interfaces import Augmentation, Batch, Source
from engine.on_device import DevicePreparation, ResidentPreparation
from engine.preparation import Preparation, Spent
from engine.randomness import Key

PREPARATIONS = {"host": Preparation, "device": DevicePreparation, "resident": ResidentPreparation}  # data.augment_on


class Maker(Protocol):
    """Makes batches; any thread may ask."""

    def make(self, samples: Sequence[Samples], ahead: Sequence[int]) -> tuple[list[Batch], Spent]:
        """Return a batch of each ``samples``, as ``Layout.prepare`` leaves it, and what they took.

        ahead: blocks that will soon be asked for. Raises UsageError naming a record that cannot be read.
        """
        ...

    def close(self) -> None:
        """Give up what goes on in the background; no batch is asked for any more."""
        ...


@dataclass(frozen=True)
class Blocks:
    """In blocks of how many records a source is read, and how many blocks are kept at most."""

    records: int
    keep: int


class Batches(Maker):
    """Makes batches in the thread that asks."""

    def __init__(
        self,
        source: Source,
        augmentations: Mapping[str, Augmentation],
        layout: Layout,
        key: Key | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self._blocks = BlockSource(source, blocks.records, blocks.keep) if blocks else None
        prepare = PREPARATIONS[layout.augment_on]
        self._preparation = prepare(self._blocks or source, augmentations, layout, key)
        self._layout = layout

    def make(self, samples: Sequence[Samples], ahead: Sequence[int] = ()) -> tuple[list[Batch], Spent]:
        """Return the batches, made now; blocks ahead are read meanwhile."""
        if self._blocks is not None:
            self._blocks.ahead(ahead)
        batches, taken = [], Spent()
        for some in samples:
            images, targets, spent = self._preparation.batch(some)
            finish = self._preparation.finishing(some)
            batch = (
                Unfinished(images, targets, some.numbers, finish) if finish else Batch(images, targets, some.numbers)
            )
            batches.append(self._layout.prepare(batch))
            taken.add(spent)
        return batches, taken

    def close(self) -> None:
        """Begin to read no more blocks ahead."""
        if self._blocks is not None:
            self._blocks.close()


@dataclass(frozen=True)
class Recipe:
    """All that another process needs to make the same batches, bit for bit; it can be pickled if its parts can.

    The augmentations are as they are now, with what they have learnt. A source holds open files and the like, so it is
    opened anew.
    """

    reopen: Callable[[], Source]
    augmentations: Mapping[str, Augmentation]
    layout: Layout
    key: Key | None
    blocks: Blocks | None
    fingerprint: str  # of the source to be opened

    def maker(self) -> Batches:
        """Return what makes the batches. Raises UsageError if the source is not what it was."""
        source = self.reopen()
        if source.fingerprint != self.fingerprint:
            raise UsageError(
                "data.workers=processes: the data that a worker process has opened is not what the run began with; if "
                "nobody has changed it, its source's fingerprint is not the same in every process: use "
                "data.workers=threads"
            )
        return Batches(source, self.augmentations, self.layout, self.key, self.blocks)
