"""FFCV's side (Leclerc et al. 2023): crops from a .beton file of raw pixels. Needs FFCV, so it is imported last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from harness import Side

from engine.plugins.stores import layout

from . import MEAN, STD, WORKERS, Turn

AHEAD = 3  # batches: FFCV's default


class Stored:
    """The pixels of a store, as FFCV's writer asks for them."""

    def __init__(self, folder: Path) -> None:
        meta = layout.read_meta(folder)
        self._index = layout.read_index(folder, meta)
        self._data = np.memmap(folder / layout.shard_name(0), np.uint8, "r")  # small stores have one data file

    def __len__(self) -> int:
        return len(self._index.sizes)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        begin, end = self._index.offsets[row : row + 2]
        pixels = np.array(self._data[begin:end]).reshape(*self._index.sizes[row], 3)
        return pixels, int(self._index.targets[row])


def write(folder: Path, beton: Path) -> Path:
    """Write the pixels of a store of one data file into ``beton``, unless it is there; return it."""
    if not beton.exists():
        fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        DatasetWriter(str(beton), fields, num_workers=WORKERS).from_indexed_dataset(Stored(folder))
    return beton


def side(beton: Path, turn: Turn) -> Side:
    """Return the side that loads with FFCV: float32 on the CPU, in the memory order that FFCV makes (NHWC)."""
    batches = turn.skipped + turn.counted + AHEAD
    records = Reader(str(beton)).num_samples
    image = [
        RandomResizedCropRGBImageDecoder((224, 224), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
        RandomHorizontalFlip(),
        NormalizeImage(np.array(MEAN) * 255, np.array(STD) * 255, np.float32),
        ToTensor(),
        ToTorchImage(convert_back_int16=False),
    ]
    loader = Loader(
        str(beton), turn.batch, num_workers=WORKERS, order=OrderOption.RANDOM, os_cache=True, batches_ahead=AHEAD,
        indices=np.resize(np.arange(records, dtype="uint64"), batches * turn.batch), pipelines={"image": image},
    )  # fmt: skip

    def take() -> float:
        epoch = iter(loader)
        seconds = turn.per_image(epoch)
        for _ in epoch:
            pass
        return seconds

    return take
