"""Which augmentations draw at random: those that look at the key they are given."""

from __future__ import annotations

from typing import Any, cast

import torch

from engine.batches import Batches
from engine.chain import Samples
from engine.host_to_device import Layout
from engine.loader import Loader
from engine.randomness import Key


class _Asked:
    """A key of the seed 0 that takes note of who looks at it, by the augmentation's name."""

    def __init__(self, key: Key, names: dict[str, None], name: str = "") -> None:
        self._key, self._names, self._name = key, names, name

    def at(self, *path: str | int) -> _Asked:
        name = self._name or (str(path[1]) if path[0] == "augment" else "")
        return _Asked(self._key.at(*path), self._names, name)

    @property
    def value(self) -> int:
        self._names.setdefault(self._name)
        return self._key.value


def that_draw(loader: Loader) -> list[str]:
    """Return the names of a loader's augmentations that prepare an image otherwise in another epoch.

    They are those that ask for random numbers for a first group of images, or whose draws are an epoch's.
    """
    names: dict[str, None] = {}
    key: Any = _Asked(Key.of(0), names)
    source = loader.source
    samples = torch.arange(loader.whole)
    preparing = Batches(source, loader.augmentations, Layout(torch.device("cpu")), cast(Key, key))
    preparing.make([Samples(samples, samples % len(source), 0)])
    for name, op in loader.augmentations.items():
        if op.by_record:
            names.setdefault(name)
    return [name for name in loader.augmentations if name in names]
