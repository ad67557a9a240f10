"""What becomes of a sample is the same bits alone and in any company, whatever sizes the others have."""

from __future__ import annotations

import io
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from engine import Key, Records
from engine.host_to_device import Layout
from engine.interfaces import Source
from engine.loader import Loader, Position, TestLoader
from engine.plugins.augment import (
    CenterCrop,
    ColorJitter,
    Flip,
    Normalize,
    PadCrop,
    RandomCrop,
    RandomResizedCrop,
    RandomShortestSize,
    Resize,
)

SIZES = [(64, 64), (50, 80), (130, 70), (64, 64), (200, 300), (64, 90)]  # some of the source's shape, some not
NORMALIZE = Normalize(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
CHAINS = {
    "fitted": {"flip": Flip(), "normalize": NORMALIZE},
    "fitted, then cropped": {"flip": Flip(), "random_resized_crop": RandomResizedCrop(size=16), "normalize": NORMALIZE},
    "padded, then resized": {
        "random_crop": RandomCrop(size=60, pad_if_needed=True), "resize": Resize(size=16, width=16),
    },
    "resized twice": {"flip": Flip(), "resize": Resize(size=16, width=16), "normalize": NORMALIZE},
    "scale jitter": {
        "random_shortest_size": RandomShortestSize(sizes=[50, 64]), "random_crop": RandomCrop(size=48), "flip": Flip(),
    },
    "cropped in the middle": {"resize": Resize(size=70), "center_crop": CenterCrop(size=64), "normalize": NORMALIZE},
    "colours before a border": {
        "color_jitter": ColorJitter(brightness=[0.4], contrast=[0.4]), "pad_crop": PadCrop(padding=1),
        "normalize": NORMALIZE,
    },
    "two borders": {"pad_crop": PadCrop(padding=1), "normalize": NORMALIZE},
}  # fmt: skip


class Pictures(Source):
    """Images of several sizes as files, or all of one size as pixels."""

    classes, shape, fingerprint = ("one",), (3, 64, 64), "pictures"

    def __init__(self, format: str) -> None:
        rng = np.random.default_rng(0)
        self.files = []
        for height, width in SIZES * 2:
            coarse = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            image.save(file, format)
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def records(self, indices) -> Records:
        files = [self.files[index] for index in indices]
        return Records("encoded", files, torch.zeros(len(files), dtype=torch.int64))


def samples(source, chain, batch, world):
    """Return the images of three epochs, and of an evaluation, by their numbers."""
    augmentations = {name: options.build() for name, options in CHAINS[chain].items()}
    found = {}
    for rank in range(world):
        sharing = {"batch": batch, "layout": Layout(torch.device("cpu")), "rank": rank, "world": world}
        loader = Loader(source, augmentations, Key.of(3), **sharing)
        for step in islice(loader.steps(Position()), 3 * len(source) // batch):
            (some,) = step.batches
            found |= {(0, n): image for n, image in zip(some.samples.tolist(), some.images, strict=True)}
        for some in TestLoader(source, augmentations, **sharing):
            found |= {(1, n): image for n, image in zip(some.samples.tolist(), some.images, strict=True)}
    return found


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_sample_is_the_same_in_any_batch_and_world(chain, format):
    source = Pictures(format)
    together = samples(source, chain, 12, 1)
    assert len(together) == 48
    for batch, world in ((1, 1), (4, 2), (12, 4)):
        apart = samples(source, chain, batch, world)
        assert apart.keys() == together.keys()
        for number, image in together.items():
            assert torch.equal(apart[number], image), number
