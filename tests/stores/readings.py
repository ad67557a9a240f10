"""Everything that gives a store's or a folder's images, read to the end past all refusals, to compare with another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from packed import Given, files, opened, pack

from engine import Key, UsageError
from engine.host_to_device import Layout
from engine.interfaces import Augmentation, Batch, Source
from engine.loader import Loader, Position, TestLoader
from engine.order import Shuffle
from engine.plugins.augment import Flip, Normalize, RandomResizedCrop
from engine.preparation import read

BATCH = 6
CPU = Layout(torch.device("cpu"))
FULLY, BY_BLOCKS = Shuffle(), Shuffle("blocks", block=4, mixed=2)
OPENING, RECORDS, TRAINING, BLOCKS, EVALUATION = "opening", "records", "training", "training by blocks", "evaluation"
Open = Callable[[], Source]
Content = tuple[bytes, bytes]  # of images and targets


@dataclass
class Reading:
    """What was given, by the way it was read and the number of the record or batch, and what was refused, in words."""

    fingerprint: str = ""
    given: dict[tuple[str, int], Content] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """All refusals."""
        return [line for lines in self.refused.values() for line in lines]

    def differs_from(self, original: Reading) -> list[tuple[str, int]]:
        """Return what this gives otherwise than the original does."""
        return [key for key, content in self.given.items() if content != original.given.get(key)]


def chain() -> dict[str, Augmentation]:
    """Return what photographs are trained with; all of it is one native pass."""
    return {
        "random_resized_crop": RandomResizedCrop(size=16).build(),
        "flip": Flip().build(),
        "normalize": Normalize(mean=[0.5] * 3, std=[0.25] * 3).build(),
    }


def loader_of(source: Source, threads: int = 0, shuffle: Shuffle = FULLY) -> Loader:
    """Return what a training reads with."""
    loader = Loader(source, chain(), Key.of(5), batch=BATCH, layout=CPU, threads=threads, shuffle=shuffle)
    assert loader.steps_per_epoch * BATCH == len(source), "an epoch would not read all records"
    return loader


def read_all(open_source: Open, decoded: bool = False) -> Reading:
    """Return all that a source gives: its records, an epoch of training, one that reads blocks, an evaluation.

    decoded: compare pixels instead of the bytes of image files.
    """
    reading = Reading()
    try:
        source = open_source()
    except UsageError as error:
        reading.refused[OPENING] = [str(error)]
        return reading
    reading.fingerprint = source.fingerprint
    ways = {RECORDS: _decoded if decoded else _records, TRAINING: _training, BLOCKS: _blocks, EVALUATION: _evaluation}
    for way, parts in ways.items():
        for number, make in enumerate(parts(source)):
            try:
                reading.given[way, number] = make()
            except UsageError as error:
                reading.refused.setdefault(way, []).append(str(error))
    return reading


class Sound:
    """A store as it was packed, of several data files, and all that it gives."""

    def __init__(self, folder: Path, content: str) -> None:
        self.folder, self.content = folder / "train", content
        pack(self.folder, photographs(), content, shard_size=4000 if content == "encoded" else 30_000)
        assert len(list(self.folder.glob("data-*"))) >= 3
        self.reading = read_all(lambda: opened(self.folder))
        assert not self.reading.refused


def photographs() -> Given:
    """Return 18 small images of many kinds and sizes."""
    images = files()[:18]
    return Given(images, torch.arange(len(images)) % 3, shape=(3, 24, 24))


def content_of(batch: Batch) -> Content:
    """Return a batch's images and targets."""
    return batch.images.numpy().tobytes(), batch.targets.numpy().tobytes()


def _records(source: Source) -> Iterator[Callable[[], Content]]:
    def one(index: int) -> Content:
        records = source.records([index])
        image = records.images[0]
        data = image.numpy().tobytes() if isinstance(image, torch.Tensor) else bytes(image)
        return data, records.targets.numpy().tobytes()

    return (lambda index=index: one(index) for index in range(len(source)))


def _decoded(source: Source) -> Iterator[Callable[[], Content]]:
    def one(index: int) -> Content:
        images, targets = read(source, [index])
        return images.numpy().tobytes(), targets.numpy().tobytes()

    return (lambda index=index: one(index) for index in range(len(source)))


def _training(source: Source) -> Iterator[Callable[[], Content]]:
    loader = loader_of(source)
    return (lambda start=start: content_of(loader.step_at(start).batches[0]) for start in _starts(loader))


def _blocks(source: Source) -> Iterator[Callable[[], Content]]:
    def one(start: Position) -> Content:
        loader = loader_of(source, shuffle=BY_BLOCKS)
        steps = loader.steps(start)
        try:
            return content_of(next(steps).batches[0])
        finally:
            steps.close()
            loader.close()

    return (lambda start=start: one(start) for start in _starts(loader_of(source)))


def _starts(loader: Loader) -> list[Position]:
    return [Position(step, step * BATCH) for step in range(loader.steps_per_epoch)]


def _evaluation(source: Source) -> Iterator[Callable[[], Content]]:
    loader = TestLoader(source, chain(), batch=BATCH, layout=CPU)
    return (lambda first=first: content_of(loader.batch_at(first)) for first in range(0, len(source), BATCH))
