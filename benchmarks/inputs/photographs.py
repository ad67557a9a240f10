"""The images that are loaded: real photographs and CIFAR-10 where they are at hand, else drawn ones of that form."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DRAWN_CLASSES, DRAWN = 10, 173
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Images:
    """A folder of images, and what they are, in words."""

    root: Path
    what: str


def real_data() -> Path:
    """Return the folder that ENGINE_TEST_DATA names, or shared/data beside the repository; it need not exist."""
    return Path(os.environ.get("ENGINE_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def photographs(folder: Path, copies: int) -> Images:
    """Fill ``folder`` with JPEG files as ``data=folder`` and ImageFolder take them; the test split is the training's.

    They are those of imagenet-sample where the real data is, each ``copies`` times; else as many drawn ones.
    """
    sample = real_data() / "imagenet-sample"
    found = sorted(sample.glob("*.JPEG")) if sample.is_dir() else []
    if found:
        files = [(path.name.partition("_")[0], path) for path in found]
        what = f"{len(files)} photographs of ImageNet, {copies} copies of each"
    else:
        files = [(f"class{number % DRAWN_CLASSES}", path) for number, path in enumerate(drawn_files(folder / "drawn"))]
        what = f"{len(files)} drawn JPEG files of about 500x375 (no photographs at hand), {copies} copies of each"
    for label, path in files:
        (folder / "train" / label).mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            shutil.copyfile(path, folder / "train" / label / f"{path.stem}-{copy}.jpg")
    (folder / "test").symlink_to("train")
    return Images(folder, what)


def drawn_files(folder: Path) -> list[Path]:
    """Write JPEG files of drawn images, of quality 90, most of them 500x375; return their paths."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(DRAWN):
        draw = np.random.default_rng(number)
        height, width = [(375, 500), (375, 500), (500, 375), (333, 500), (480, 640)][number % 5]
        path = folder / f"{number:04d}.jpg"
        Image.fromarray(drawn(draw, height, width)).save(path, quality=90)
        paths.append(path)
    return paths


def drawn(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return an image [height, width, 3] of noise whose amplitude halves with each octave, as photographs' does."""
    image = np.zeros((height, width, 3))
    side = 2
    while side < max(height, width):
        grid = draw.normal(0, 128 / side**0.5, (side, side, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(grid[:, :, channel]).resize((width, height), Image.Resampling.BICUBIC)
            image[:, :, channel] += np.asarray(layer)
        side *= 2
    return (128 + image).clip(0, 255).astype(np.uint8)


def cifar(folder: Path) -> Images:
    """Return CIFAR-10's binary files where the real data is, else drawn ones in ``folder``: 20,000 images of noise."""
    real = real_data() / "cifar10"
    if real.is_dir():
        return Images(real, "CIFAR-10")
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        records = draw.integers(0, 256, (10_000, 1 + PIXELS), np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / name)
    return Images(folder, "drawn noise in the form of CIFAR-10 (no CIFAR-10 at hand)")


def cifar_training(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Return the training images, uint8 [n, 3, 32, 32], and their int64 labels."""
    parts = [np.fromfile(path, np.uint8) for path in sorted(images.root.glob("data_batch_*.bin"))]
    records = np.concatenate(parts).reshape(-1, 1 + PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0].astype(np.int64)
