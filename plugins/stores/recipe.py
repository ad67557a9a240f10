"""From a source's records to the bytes that a store holds of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engine import UsageError
from engine.decode import decode_whole, reduced
from engine.interfaces import Records, Source

from .colour import Colour
from .layout import ENCODED, crc32c

SAMPLE = 32  # records that tell how large the others are


@dataclass
class Prepared:
    """Some records, ready to be written; unreadable ones are left out and named in ``faults``."""

    colour: Colour
    payloads: list[bytes | np.ndarray] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, payload: bytes | np.ndarray, shape: tuple[int, ...], target: Tensor) -> None:
        """Take in a record of an image of ``shape`` = (height, width, channels)."""
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

        Raises UsageError where the source's records are of a kind that a store cannot hold.
        """
        prepared = Prepared(Colour.none(source.shape[0]))
        for some, records in _read(source, indices, prepared.faults):
            _require_targets(source, some, records.targets)
            if records.encoding == "encoded":
                self._add_files(source, some, records, prepared)
            else:
                self._add_raw(records, prepared)
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
            prepared.add(data if self.content == ENCODED else pixels, pixels.shape, target)
            prepared.colour.add(pixels)

    def _add_raw(self, records: Records, prepared: Prepared) -> None:
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
        for image, target in zip(pixels, records.targets, strict=True):
            prepared.add(image, image.shape, target)
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


def _read(source: Source, indices: Sequence[int], faults: list[str]) -> Iterator[tuple[Sequence[int], Records]]:
    """Yield all records together, or one by one if the source cannot give some: then ``faults`` takes the reasons."""
    try:
        records = source.records(indices)
    except UsageError as error:
        if len(indices) == 1:
            faults.append(str(error))
            return
        for index in indices:
            yield from _read(source, [index], faults)
        return
    yield indices, records


def _require_targets(source: Source, indices: Sequence[int], targets: Tensor) -> None:
    if targets.is_floating_point():
        if targets.dtype not in (torch.float32, torch.float64):
            raise UsageError(f"this data has targets of {targets.dtype}; a store holds float32 and float64")
        return
    wrong = (targets < 0) | (targets >= len(source.classes))
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise UsageError(
            f"{source.name_of(indices[place])} is of class {int(targets[place])}, but the classes are 0 to "
            f"{len(source.classes) - 1}"
        )
