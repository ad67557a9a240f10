"""Sources and augmentations for tests of the loader, in a module that worker processes can import."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from engine import Records, UsageError, uniform
from engine.interfaces import Augmentation, Pictures, Source
from engine.plugins.augment import Flip, Normalize, PadCrop

SIDE = 8


class Noise(Source):
    """Colour images of 8x8 random pixels, of four classes; counts what is asked for."""

    classes = ("a", "b", "c", "d")
    shape = (3, SIDE, SIDE)

    def __init__(self, length: int = 120, bad: int = -1, changed: str = "") -> None:
        self.images = torch.randint(
            0, 256, (length, *self.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
        self.bad, self.fingerprint = bad, f"noise {length}{changed}"
        self.requests: list[list[int]] = []
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def asked(self) -> Counter[int]:
        """How often each record was asked for."""
        return Counter(index for request in self.requests for index in request)

    def records(self, indices: Sequence[int]) -> Records:
        rows = list(indices)
        with self.lock:
            self.requests.append(rows)
        if self.bad in rows:
            raise UsageError(f"{self.name_of(self.bad)} cannot be read; delete it")
        return Records("raw", self.images[rows], torch.tensor(rows) % 4)

    def name_of(self, index: int) -> str:
        return f"photo_{index}.jpg"


class Files(Noise):
    """The same images as PNG files' bytes."""

    def records(self, indices: Sequence[int]) -> Records:
        found = super().records(indices)
        return Records("encoded", [_png(image) for image in found.images], found.targets)


class Pixels(Noise):
    """The same images where they are in memory; a request with a bad one among them is refused."""

    def pictures(self, indices: torch.Tensor) -> tuple[Pictures, torch.Tensor]:
        found = super().records(indices.tolist())
        return Pictures.of_pixels(found.images), found.targets


class Slow(Noise):
    """Waits in each request until as many threads as expected have asked for something."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.wanted = threading.Event()

    def records(self, indices) -> Records:
        assert self.wanted.wait(60)
        return super().records(indices)


def _png(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


class Spin(Augmentation):
    """Adds to each image a number that pure Python computes from what was drawn, holding the interpreter's lock."""

    def draw(self, key, samples, shape):
        return (uniform(key, samples, 1)[:, 0] * 2**24).long()

    def apply(self, images, targets, parameters):
        sums = []
        for seed in parameters.tolist():
            total = 0
            for _ in range(300):
                seed = (1103515245 * seed + 12345) % 2**31
                total ^= seed
            sums.append(total / 2**31)
        return images.float() + torch.tensor(sums)[:, None, None, None], targets


class Mixed(Augmentation):
    """Mixes each pair of neighbours, images and labels, by a weight that the pair has drawn."""

    group = 2

    def __init__(self, classes: int = 4) -> None:
        self.classes = classes

    def draw(self, key, samples, shape):
        return uniform(key, samples[::2], 1)[:, 0].repeat_interleave(2)

    def apply(self, images, targets, parameters):
        partner = torch.arange(len(images)).view(-1, 2).flip(1).flatten()
        soft = torch.nn.functional.one_hot(targets, self.classes).float()
        kept = parameters[:, None]
        own = parameters[:, None, None, None]
        return images.float() * own + images[partner].float() * (1 - own), soft * kept + soft[partner] * (1 - kept)


class Deadly(Augmentation):
    """Ends the process that applies it, unless that is the one that made it."""

    def __init__(self) -> None:
        self.parent = os.getpid()

    def apply(self, images, targets, parameters):
        if os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return images, targets


class Broken(Augmentation):
    """Has a defect."""

    def apply(self, images, targets, parameters):
        raise ZeroDivisionError("a defect of the augmentation")


class Keeping(Augmentation):
    """Keeps the training source."""

    def prepare(self, training):
        self.source = training()

    def apply(self, images, targets, parameters):
        return images, targets


class Telling(Augmentation):
    """Writes the process that applies it into a folder, a file for each."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder, self.seconds = folder, seconds

    def apply(self, images, targets, parameters):
        (self.folder / str(os.getpid())).touch()
        time.sleep(self.seconds)
        return images, targets


class Held(Augmentation):
    """Tells a pipe that a process has begun with a batch, and goes on once there is a byte in another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def apply(self, images, targets, parameters):
        with (self.folder / "begun").open("wb", buffering=0) as begun:
            begun.write(f"{os.getpid():8}".encode())
        with (self.folder / "go").open("rb", buffering=0) as go:
            assert go.read(1) == b"."
        return images, targets


def augmentations(source: Source | None = None) -> dict[str, Augmentation]:
    """Return what training commonly does, then one that mixes pairs, prepared for a source (by default Noise)."""
    given = source or Noise()
    found: dict[str, Augmentation] = {
        "pad_crop": PadCrop().build(), "flip": Flip().build(), "normalize": Normalize().build(),
        "mix": Mixed(len(given.classes)),
    }  # fmt: skip
    for augmentation in found.values():
        augmentation.prepare(lambda: given)
    return found
