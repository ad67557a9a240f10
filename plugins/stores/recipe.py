"""From a source's records to the bytes that a store holds of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engine import UsageError
from engine.decode import decode_whole, reduced
from engine.interfaces import Records, Source
from engine.preparation import require_classes

from .colour import Colour
from .layout import ENCODED, crc32c

SAMPLE = 32  # records that tell how large the others are


@dataclass
class Prepared:
    """Some records, ready to be written; those that cannot be decoded are left out and named in ``faults``.

    records: which of the source's they are.
    """

    colour: Colour
    records: list[int] = field(default_factory=list)
    payloads: list[bytes | np.ndarray] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, record: int, payload: bytes | np.ndarray, shape: tuple[int, ...], target: Tensor) -> None:
        """Take in a record of an image of ``shape`` = (height, width, channels)."""
        self.records.append(record)
        self.payloads.append(payload)
        self.lengths.append(payload.nbytes if isinstance(payload, np.ndarray) else len(payload))
        self.sizes.append((shape[0], shape[1]))
        self.targets.append(target)
        self.checksums.append(crc32c(payload))


@dataclass(frozen=True)
class Recipe:
    """What is stored of each image: its encoded bytes, or its pixels, reduced where ``shorter_side`` says so."""

    content: str
    shorter_side: int | None

    def prepare(self, source: Source, indices: Sequence[int]) -> Prepared:
        """Return some of a source's records as they are to be stored. A pure function; any thread may call it.

        Raises UsageError where the source's records are of a kind that a store cannot hold, and whatever the source
        raises: what it cannot give now, it may give later.
        """
        prepared = Prepared(Colour.none(source.shape[0]))
        records = source.records(indices)
        _require_targets(source, indices, records.targets)
        if records.encoding == "encoded":
            self._add_files(source, indices, records, prepared)
        else:
            self._add_raw(indices, records, prepared)
        return prepared

    def _add_files(self, source: Source, indices: Sequence[int], records: Records, prepared: Prepared) -> None:
        side = None if self.content == ENCODED else self.shorter_side
        for index, image, target in zip(indices, records.images, records.targets, strict=True):
            assert not isinstance(image, Tensor)
            data = bytes(image)
            try:
                pixels = decode_whole(data, source.shape[0], side)
            except UsageError as error:
                prepared.faults.append(f"{source.name_of(index)} ({error})")
                continue
            prepared.add(index, data if self.content == ENCODED else pixels, pixels.shape, target)
            prepared.colour.add(pixels)

    def _add_raw(self, indices: Sequence[int], records: Records, prepared: Prepared) -> None:
        images = records.images
        if records.encoding != "raw" or not isinstance(images, Tensor):
            raise UsageError(
                f"this data gives prepared floats ({records.encoding}), and a store holds pixels of 8 bits: pack the "
                "data that they are made from"
            )
        if self.content == ENCODED:
            raise UsageError("content=encoded: this data has no encoded images; write content=pixels")
        if self.shorter_side is not None and images.shape[1] not in (1, 3):
            raise UsageError(f"shorter_side={self.shorter_side}: images of {images.shape[1]} channels are not reduced")
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        if self.shorter_side is not None and self.shorter_side < min(pixels.shape[1:3]):
            pixels = np.stack([reduced(image, self.shorter_side) for image in pixels])
        for index, image, target in zip(indices, pixels, records.targets, strict=True):
            prepared.add(index, image, image.shape, target)
        prepared.colour.add(pixels)

    def bytes_each(self, source: Source) -> int:
        """Return about how many bytes a record takes, from some of all parts; always the same for the same source.

        Raises UsageError where there is nothing to pack, or nothing that a store can hold.
        """
        if len(source) == 0:
            raise UsageError("the data holds no images; there is nothing to pack")
        last = len(source) - 1
        places = sorted({last * place // (SAMPLE - 1) for place in range(SAMPLE)})
        lengths = self.prepare(source, places).lengths
        return max(1, sum(lengths) // max(1, len(lengths)))


def _require_targets(source: Source, indices: Sequence[int], targets: Tensor) -> None:
    if targets.is_floating_point():
        if targets.dtype not in (torch.float32, torch.float64):
            raise UsageError(f"this data has targets of {targets.dtype}; a store holds float32 and float64")
        return
    require_classes(source, indices, targets)
