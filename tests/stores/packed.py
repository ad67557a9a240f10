"""Small sources, and the stores that are packed of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.interfaces import Records, Source
from engine.plugins.stores.layout import Meta, read_meta
from engine.plugins.stores.packing import Packing
from engine.plugins.stores.recipe import Recipe
from engine.plugins.stores.source import StoreSource, open_store


class Given(Source):
    """Gives the images that it was made of: uint8 [n, c, h, w], or a list of files."""

    def __init__(
        self,
        images: Tensor | Sequence[bytes],
        targets: Tensor,
        classes: Sequence[str] = ("a", "b", "c"),
        shape: tuple[int, int, int] = (3, 8, 8),
    ) -> None:
        self.images, self.targets, self.classes = images, targets, tuple(classes)
        self.shape = tuple(images.shape[1:]) if isinstance(images, Tensor) else shape
        self.fingerprint = f"given {len(images)} {self.shape}"

    def __len__(self) -> int:
        return len(self.images)

    def records(self, indices: Sequence[int]) -> Records:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        if isinstance(self.images, Tensor):
            return Records("raw", self.images[rows], self.targets[rows])
        return Records("encoded", [self.images[index] for index in indices], self.targets[rows])


def raw(count: int = 20, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> Given:
    """Return noise of three classes."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (count, *shape), dtype=np.uint8))
    return Given(images, torch.from_numpy(rng.integers(0, 3, count)))


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """Return a coloured image that a JPEG can hold, uint8 [height, width, 3]."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def files() -> list[bytes]:
    """Return photographs of many kinds: sizes, gray, rotated by EXIF, CMYK, PNG with transparency and of 16 bits."""
    kinds: list[tuple[Image.Image, str, dict]] = [
        (Image.fromarray(smooth(40 + 7 * seed, 90 - 9 * seed, seed)), "JPEG", {}) for seed in range(6)
    ]
    kinds.append((Image.fromarray(smooth(33, 50, 7)).convert("L"), "JPEG", {}))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        kinds.append((Image.fromarray(smooth(30, 44, 8)), "JPEG", {"exif": exif}))
    kinds.append((Image.fromarray(smooth(30, 44, 9)).convert("CMYK"), "JPEG", {}))
    kinds.append((Image.fromarray(smooth(25, 20, 10)).convert("RGBA"), "PNG", {}))
    kinds.append((Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160), "PNG", {}))
    kinds.append((Image.fromarray(smooth(700, 500, 11)), "JPEG", {}))  # reduced while it is decoded
    written = []
    for image, kind, settings in kinds:
        buffer = io.BytesIO()
        image.save(buffer, kind, **settings)
        written.append(buffer.getvalue())
    return written


def photographs() -> Given:
    """Return a source of ``files()``."""
    images = files()
    return Given(images, torch.arange(len(images)) % 3, shape=(3, 24, 24))


def pack(
    folder: Path,
    source: Source,
    content: str = "pixels",
    shorter_side: int | None = None,
    shard_size: int = 1 << 20,
    threads: int = 1,
) -> Meta:
    """Pack ``source`` as one split, going on with what is there; return what ``meta.json`` says."""
    packing = Packing.begin(folder, source, Recipe(content, shorter_side), shard_size)
    if packing is None:
        return read_meta(folder)
    for number in sorted(set(range(packing.shards)) - set(packing.finished())):
        packing.write_shard(number, threads, lambda count: None)
    return packing.commit()


def opened(folder: Path, size: int | None = None, check: bool = True) -> StoreSource:
    """Open a split that ``pack`` wrote."""
    return open_store(str(folder.parent), folder.name, size, check)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
