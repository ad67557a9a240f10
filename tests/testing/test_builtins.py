"""Every built-in passes the conformance kit's check of its group; a new one is covered without a change here."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.options import Component
from engine.registry import Registry
from engine.testing import (
    check_augment,
    check_kernel,
    check_observer,
    check_precision,
    check_source,
    check_strategy,
)

CHECKS: dict[str, Callable[..., None]] = {
    "data": check_source,
    "augment": check_augment,
    "kernels": check_kernel,
    "parallel": check_strategy,
    "precision": check_precision,
    "observe": check_observer,
}

# Settings besides the defaults that take another path through a component.
VARIANTS: dict[str, list[dict[str, object]]] = {
    "augment=flip": [{"probability": 1.0}],
    "augment=pad_crop": [{"fill": "reflect"}, {"padding": 0}],
    "augment=normalize": [{"mean": [0.5], "std": [0.25]}],
    "data=cifar100": [{"labels": "coarse"}],
    "data=folder": [{"channels": 1, "size": 12}],
    "kernels=native": [{"layers": ["0:naive", "[1-3]:winograd2"]}],
    "kernels=im2col": [{"materialise": True}],
    "kernels=winograd": [{"tile": "2"}, {"tile": "6"}],
    "kernels=auto": [{"cache": "none", "error_budget": 1e-4, "workspace": 0}],
    "observe=tensorboard": [{"histograms": 1, "images": 2}],
    "observe=profile": [{"wait": 0, "warmup": 1, "record": 2}],
}


def components() -> Iterator[object]:
    for group, name in Registry.load().components:
        if group in CHECKS:
            for settings in ({}, *VARIANTS.get(f"{group}={name}", [])):
                words = [f"{group}={name}", *(f"{key}={value}" for key, value in settings.items())]
                yield pytest.param(group, name, settings, id=" ".join(words))


@pytest.mark.parametrize(("group", "name", "settings"), list(components()))
def test_builtin_keeps_its_promises(group: str, name: str, settings: dict[str, object], tmp_path: Path):
    options = Registry.load().entry(group, name).options
    CHECKS[group](ready(options, name, settings, tmp_path))


def ready(options: type[Component], name: str, settings: dict[str, object], folder: Path) -> Component:
    """Return the options with generated files where they need a data root."""
    if "root" not in options.__dataclass_fields__:
        return options(**settings)
    if name not in FILES:
        pytest.fail(f"data={name} needs files: add a function that generates a few to FILES in this test")
    FILES[name](folder)
    return options(root=str(folder), **settings)


def write_idx(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 12)):
        images = struct.pack(">4I", 0x803, count, 9, 7) + rng.integers(0, 256, count * 63, dtype=np.uint8).tobytes()
        labels = struct.pack(">2I", 0x801, count) + (np.arange(count) % 10).astype(np.uint8).tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def write_cifar(folder: Path, names: tuple[str, str], label_bytes: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    for name, count in zip(names, (30, 12), strict=True):
        records = rng.integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
        records[:, :label_bytes] = rng.integers(0, classes, (count, label_bytes))
        (folder / name).write_bytes(records.tobytes())


def write_folder(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            path = folder / split / f"class{number % 3}" / f"{number}.{'png' if number % 2 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (10 + number, 14, 3), dtype=np.uint8)).save(path)


FILES: dict[str, Callable[[Path], None]] = {
    "idx": write_idx,
    "cifar10": lambda folder: write_cifar(folder, ("data_batch_1.bin", "test_batch.bin"), 1, 10),
    "cifar100": lambda folder: write_cifar(folder, ("train.bin", "test.bin"), 2, 20),
    "folder": write_folder,
}
