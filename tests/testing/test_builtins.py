"""Every built-in passes the conformance kit's check of its group; a new one is covered without a change here."""

from __future__ import annotations

import gzip
import struct
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.options import Component
from engine.plugins.data import Folder
from engine.plugins.stores.packing import Packing
from engine.plugins.stores.recipe import Recipe
from engine.registry import Registry
from engine.testing import (
    check_augment,
    check_kernel,
    check_marginalization,
    check_observer,
    check_precision,
    check_source,
    check_strategy,
    check_transfer,
)

CHECKS: dict[str, Callable[..., None]] = {
    "data": check_source,
    "augment": check_augment,
    "kernels": check_kernel,
    "parallel": check_strategy,
    "precision": check_precision,
    "marginalize": check_marginalization,
    "observe": check_observer,
    "transfer": check_transfer,
}

# Settings besides the defaults that take another path through a component.
VARIANTS: dict[str, list[dict[str, object]]] = {
    "augment=flip": [{"probability": 1.0}],
    "augment=pad_crop": [{"fill": "reflect"}, {"padding": 0}],
    "augment=normalize": [{"mean": [0.5], "std": [0.25]}],
    "augment=resize": [{"size": 7}, {"size": 20, "width": 5}],
    "augment=center_crop": [{"size": 6, "test": "whole"}, {"size": 7, "width": 16, "pad_if_needed": True}],
    "augment=random_crop": [{"size": 6, "test": "whole"}, {"size": 7, "width": 16, "pad_if_needed": True}],
    "augment=random_resized_crop": [{"size": 6}, {"size": 9, "width": 12, "test_size": 8, "test_resize": 8}],
    "augment=random_shortest_size": [{"sizes": [6, 6]}],
    "augment=affine": [{"translate": [0.1, 0.2], "scale": [0.7, 1.3], "shear": [5, 9, -4, 8], "stretch": [2]}],
    "augment=color_jitter": [
        {"brightness": [0.4], "contrast": [0.4], "saturation": [0.4], "hue": [0.2], "clip": clip}
        for clip in (True, False)
    ],
    "augment=random_erasing": [{"probability": 1.0, "value": [0.3]}, {"random": True}],
    "augment=gaussian_noise": [{"clip": False, "mean": 0.1}],
    "augment=rand_augment": [{"num_ops": 5, "magnitude": 30}],
    "augment=mixup": [{"alpha": 0.2, "group_size": 3}],
    "augment=cutmix": [{"probability": 0.5, "group_size": 4}],
    "data=cifar100": [{"labels": "coarse"}],
    "data=folder": [{"channels": 1, "size": 12}],
    "data=hdf5": [{"size": 12}],
    "data=lmdb": [{"size": 12, "order": "rgb"}],
    "data=store": [{"size": 9, "check": False}],
    "kernels=native": [{"layers": ["0:naive", "[1-3]:winograd2"]}],
    "kernels=im2col": [{"materialise": True}],
    "kernels=winograd": [{"tile": "2"}, {"tile": "6"}],
    "kernels=auto": [{"cache": "none", "error_budget": 1e-4, "workspace": 0}],
    "marginalize=multi_scale": [{"sizes": [8, 5]}],
    "marginalize=ten_crop": [{"crop": 5}],
    "parallel=single": [{"canonical": 1}],
    "parallel=pipeline": [{"microbatches": 1}],
    "transfer=last_k": [{"layers": 1}, {"layer_decay": 0.5}],
    "transfer=full": [{"lr": ["0:0"]}],
    "transfer=staged": [{"patience": 1}],
    "observe=tensorboard": [{"histograms": 1, "images": 2}],
    "observe=profile": [{"wait": 0, "warmup": 1, "record": 2}],
}


# Their defaults are for more pixels, or samples, than the checks have.
TOO_LARGE = {
    f"augment={name}"
    for name in ("resize", "center_crop", "random_crop", "random_resized_crop", "random_shortest_size")
} | {"parallel=pipeline"}


def components() -> Iterator[object]:
    for group, name in Registry.load().components:
        if group in CHECKS:
            defaults: list[dict[str, object]] = [] if f"{group}={name}" in TOO_LARGE else [{}]
            for settings in (*defaults, *VARIANTS.get(f"{group}={name}", [])):
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


def write_store(folder: Path) -> None:
    write_folder(folder / "photographs")
    for split in ("train", "test"):
        source = Folder(root=str(folder / "photographs"), size=12).build(split)
        packing = Packing.begin(folder / split, source, Recipe("pixels", None), shard_size=1000)
        assert packing
        for number in range(packing.shards):
            packing.write_shard(number, 1, lambda count: None)
        packing.commit()


def write_hdf5(folder: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    for split, images, labels in pictures():
        with h5py.File(folder / f"{split}.h5", "w") as file:
            file["images"], file["labels"] = images, labels


def write_lmdb(folder: Path) -> None:
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    for split, images, labels in pictures():
        with lmdb.open(str(folder / f"{split}_lmdb")) as database, database.begin(write=True) as transaction:
            for number, message in enumerate(datums(images, labels)):
                transaction.put(b"%08d" % number, message)


def write_leveldb(folder: Path) -> None:
    plyvel = pytest.importorskip("plyvel", reason="plyvel is not installed")
    for split, images, labels in pictures():
        with plyvel.DB(str(folder / f"{split}_leveldb"), create_if_missing=True) as database:
            for number, message in enumerate(datums(images, labels)):
                database.put(b"%08d" % number, message)


def write_webdataset(folder: Path) -> None:
    for split, images, labels in pictures():
        with tarfile.open(folder / f"{split}-000000.tar", "w") as archive:
            for number, image in enumerate(images):
                for ending, content in (("png", png(image)), ("cls", b"%d" % labels[number])):
                    member = tarfile.TarInfo(f"{number:06}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, BytesIO(content))


def write_arrow(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    for split, images, labels in pictures():
        column = [{"bytes": png(image), "path": None} for image in images]
        parquet.write_table(pa.table({"image": column, "label": labels}), folder / f"{split}.parquet", row_group_size=5)


def pictures() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        yield split, rng.integers(0, 256, (count, 10, 14, 3), dtype=np.uint8), np.arange(count) % 3


def png(image: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def datums(images: np.ndarray, labels: np.ndarray) -> Iterator[bytes]:
    """Yield raw Caffe Datums of 3 x 10 x 14 = 420 bytes, whose length is the varint a4 03."""
    for image, label in zip(images, labels, strict=True):
        yield b"\x08\x03\x10\x0a\x18\x0e\x22\xa4\x03" + image.transpose(2, 0, 1).tobytes() + bytes((0x28, label))


FILES: dict[str, Callable[[Path], None]] = {
    "idx": write_idx,
    "cifar10": lambda folder: write_cifar(folder, ("data_batch_1.bin", "test_batch.bin"), 1, 10),
    "cifar100": lambda folder: write_cifar(folder, ("train.bin", "test.bin"), 2, 20),
    "folder": write_folder,
    "hdf5": write_hdf5,
    "lmdb": write_lmdb,
    "leveldb": write_leveldb,
    "webdataset": write_webdataset,
    "arrow": write_arrow,
    "store": write_store,
}
