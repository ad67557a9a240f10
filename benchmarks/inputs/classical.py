"""The usual way: torch's DataLoader with worker processes, Pillow, and one image at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Side
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from . import CIFAR_MEAN, CIFAR_STD, EIGENVALUES, EIGENVECTORS, MEAN, STD, WORKERS, Turn, pillow

AHEAD = 2  # batches that a worker prepares ahead: DataLoader's default


def recipe(coloured: bool) -> list[pillow.Step]:
    """Return the steps of ImageNet's training: crop, flip, normalise; ``coloured``: jitter and lighting as well."""
    colours = [pillow.color_jitter] if coloured else []
    lights = [pillow.lighting(EIGENVALUES, EIGENVECTORS)] if coloured else []
    return [
        pillow.random_resized_crop, pillow.random_flip, *colours, pillow.to_tensor, *lights,
        pillow.normalize(MEAN, STD),
    ]  # fmt: skip


def cifar_recipe(cut: bool = True) -> list[pillow.Step]:
    """Return the steps of CIFAR's training: padded crop, flip, normalise; ``cut``: cutout as well."""
    return [
        pillow.pad_crop, pillow.random_flip, pillow.to_tensor, pillow.normalize(CIFAR_MEAN, CIFAR_STD),
        *([pillow.cutout] if cut else []),
    ]  # fmt: skip


class Files(Dataset):
    """JPEG files in one folder per class; decoded whole, in RGB, as ImageFolder's default loader does."""

    def __init__(self, folder: Path, steps: Sequence[pillow.Step]) -> None:
        labels = sorted(path.name for path in folder.iterdir())
        self._files = [(str(path), number) for number, name in enumerate(labels) for path in (folder / name).iterdir()]
        self._steps = steps

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._files[index]
        with open(path, "rb") as file:
            image: Any = Image.open(file).convert("RGB")
        for step in self._steps:
            image = step(image)
        return image, label


class Arrays(Dataset):
    """Images in memory, uint8 [n, h, w, 3], each made Pillow's when asked for, as torchvision's CIFAR10 does."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, steps: Sequence[pillow.Step]) -> None:
        self._images, self._labels = np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels.tolist()
        self._steps = steps

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Any = Image.fromarray(self._images[index])
        for step in self._steps:
            image = step(image)
        return image, self._labels[index]


def loader(dataset: Dataset, batch: int, batches: int) -> DataLoader:
    """Return a loader of so many batches in random order, whose workers stay between two iterations."""
    sampler = RandomSampler(dataset, num_samples=batches * batch)  # type: ignore[arg-type]
    return DataLoader(
        dataset, batch, sampler=sampler, num_workers=WORKERS, drop_last=True, persistent_workers=True,
        prefetch_factor=AHEAD, worker_init_fn=_one_thread,
    )  # fmt: skip


def side(dataset: Dataset, turn: Turn) -> Side:
    """Return the side that loads with a DataLoader; its workers are idle between two turns."""
    ready = loader(dataset, turn.batch, turn.skipped + turn.counted + AHEAD * WORKERS)

    def take() -> float:
        batches = iter(ready)
        seconds = turn.per_image(batches)
        exhaust(batches)
        return seconds

    return take


def exhaust(batches: Iterator[Any]) -> None:
    """Take what is left, so that nobody works on it any more."""
    for _ in batches:
        pass


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
