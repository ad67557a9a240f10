"""From the numbers of records to the images and targets of a batch: read, decode, augment.

Adjacent augmentations that native code knows become one pass over the pixels, from where they are stored to where the
network wants them (``engine.chain``, ``engine.plan``); all others are applied to the batch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import ops
from engine.chain import Chain, Images, Link, Samples, links_of
from engine.decode import decode
from engine.errors import UsageError
from engine.host_to_device import Layout
from engine.interfaces import Augmentation, Source
from engine.pictures import Pictures
from engine.plan import Plan
from engine.randomness import Key
from engine.resampling import Resampling, fitting

# What is said of a record, by what is wrong with it.
FAULTS = {
    ops.ENDED: "cannot be read: the file was truncated while it was in use; restore it from a copy",
    ops.UNREADABLE: "cannot be read ({}); was it moved?",
    ops.CHECKSUM: "is damaged: its checksum does not match; pack it again, or restore it from a copy",
    ops.DAMAGED: "cannot be decoded ({}); delete or replace it",
}
Finish = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Spent:
    """Seconds of a thread's time that batches took: to read, to decode, and to augment and lay out."""

    read: float = 0.0
    decode: float = 0.0
    augment: float = 0.0

    def add(self, other: Spent) -> None:
        """Take in what others took."""
        self.read += other.read
        self.decode += other.decode
        self.augment += other.augment


class Preparation(Chain):
    """Prepares batches of a source, for training with ``key`` or for an evaluation without; any thread may ask."""

    def __init__(
        self, source: Source, augmentations: Mapping[str, Augmentation], layout: Layout, key: Key | None = None
    ) -> None:
        super().__init__(links_of(augmentations, key), layout)
        self.source = source
        self._scaled = key is not None  # JPEG at a part of its size is for training: an evaluation is exact
        self._busy = threading.local()  # what the calling thread's batch has taken

    def batch(self, samples: Samples) -> tuple[Tensor, Tensor, Spent]:
        """Return images [n, c, h, w] and targets. Raises UsageError naming a record that cannot be read."""
        spent = self._busy.spent = Spent()
        begun = time.perf_counter()
        images, targets = self._opened(samples.records, spent)
        images, targets = self.run(images, targets, samples)
        spent.augment = time.perf_counter() - begun - spent.read - spent.decode
        return images, targets, spent

    def finishing(self, samples: Samples) -> Finish | None:
        """Return what the device has still to make of a batch's images and targets; None: nothing."""
        return None

    def _opened(self, rows: Tensor, spent: Spent) -> tuple[Images, Tensor]:
        """Return records as they are stored, or as tensors where native code knows nothing of them."""
        with timed(spent, "read"):
            found = self.source.pictures(rows)
            if found is not None:
                require_classes(self.source, rows, found[1])
                return found
            indices = rows.tolist()
            records = self.source.records(indices)
            require_classes(self.source, indices, records.targets)
        images = records.images
        if isinstance(images, Tensor):
            return (Pictures.of_pixels(images) if self.passes(images) else images), records.targets
        with timed(spent, "decode"):
            return pictures_of(self.source, indices, images), records.targets

    def passes(self, images: Images) -> bool:
        """Return whether native code reads them: pixels of bytes, gray or colour."""
        if isinstance(images, Pictures):
            return True
        return images.dtype == torch.uint8 and images.shape[1] in (1, 3) and len(images) > 0

    def begin(self, plan: Plan, images: Images, link: Link | None) -> None:
        """Have stored images scaled to just cover the source's shape, unless an augmentation sees to their size."""
        if isinstance(images, Pictures) and not images.fit and not (link and isinstance(link.op, Resampling)):
            fitting(plan.sizes, *self.source.shape[1:]).add_to(plan)

    def carry_out(self, plan: Plan, images: Images, samples: Samples, dtype: torch.dtype, last: bool) -> Tensor:
        """Return images after one native pass. Raises UsageError naming a record that is damaged or gone."""
        pictures = images if isinstance(images, Pictures) else Pictures.of_pixels(images)
        numbers = dtype != torch.uint8
        order = torch.channels_last if last and numbers and self.layout.channels_last else torch.contiguous_format
        out = torch.empty((len(plan), *(plan.shape or ())), dtype=dtype, memory_format=order)
        try:
            times = ops.transform(pictures, plan, out, scaled=self._scaled)
        except ops.PictureError as error:
            if error.kind not in FAULTS:  # of the plan, not of the record
                raise
            name = self.source.name_of(int(samples.records[error.place]))
            raise UsageError(f"{name} {FAULTS[error.kind].format(error.reason)}") from error
        self._busy.spent.read += times.read * 1e-9
        self._busy.spent.decode += times.decode * 1e-9
        return out


@contextmanager
def timed(spent: Spent, what: str) -> Iterator[None]:
    """Add the time within ``with`` to one of what was spent."""
    begun = time.perf_counter()
    yield
    setattr(spent, what, getattr(spent, what) + time.perf_counter() - begun)


def pictures_of(source: Source, indices: Sequence[int], contents: Sequence[bytes]) -> Pictures:
    """Return the images of files' bytes. Raises UsageError naming one that is damaged or of another format."""
    place = 0

    def counted() -> Iterator[bytes]:
        nonlocal place
        for data in contents:
            yield data
            place += 1

    try:
        return Pictures.of_files(counted(), source.shape[0])
    except UsageError as error:
        raise UsageError(f"{source.name_of(indices[place])} {error}") from error


def read(source: Source, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the images [n, c, h, w] and targets of records, decoded to the source's shape.

    Raises UsageError naming a record that cannot be decoded, or whose class does not exist.
    """
    records = source.records(indices)
    require_classes(source, indices, records.targets)
    if isinstance(records.images, Tensor):
        return records.images, records.targets
    images = torch.empty((len(indices), *source.shape), dtype=torch.uint8)
    for place, (index, data) in enumerate(zip(indices, records.images, strict=True)):
        try:
            images[place] = decode(data, source.shape)
        except UsageError as error:
            raise UsageError(f"{source.name_of(index)} {error}") from error
    return images, records.targets


def require_classes(source: Source, indices: Sequence[int] | Tensor, targets: Tensor) -> None:
    """Raise UsageError naming a record whose class does not exist."""
    # Here the targets are in the host's memory still; on a GPU a wrong one would be an assertion in some later kernel.
    if not source.classes or targets.is_floating_point() or len(targets) == 0:
        return
    numbers = targets.numpy()
    if numbers.min() < 0 or numbers.max() >= len(source.classes):
        place = int(((numbers < 0) | (numbers >= len(source.classes))).argmax())
        raise UsageError(
            f"{source.name_of(int(indices[place]))} is of class {int(targets[place])}, but the classes are 0 to "
            f"{len(source.classes) - 1}"
        )
