"""What all built-in sources have in common."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from engine import UsageError
from engine.options import check
from engine.plugins.data import (
    Arrow,
    Cifar10,
    Cifar100,
    Digits,
    Folder,
    Hdf5,
    Idx,
    LevelDb,
    Lmdb,
    WebDataset,
)
from engine.plugins.data.memory import InMemory
from engine.registry import Registry

ROOTED = [Idx, Cifar10, Cifar100, Folder, Hdf5, Lmdb, LevelDb, WebDataset, Arrow]


def test_the_registry_offers_the_sources():
    registry = Registry.load()
    for name, options in (
        ("digits", Digits), ("idx", Idx), ("cifar10", Cifar10), ("cifar100", Cifar100), ("folder", Folder),
        ("hdf5", Hdf5), ("lmdb", Lmdb), ("leveldb", LevelDb), ("webdataset", WebDataset), ("arrow", Arrow),
    ):  # fmt: skip
        assert registry.entry("data", name).options is options


def test_importing_the_plugin_imports_nothing_heavy():
    heavy = {"torch", "numpy", "PIL", "sklearn", "h5py", "plyvel", "fsspec", "pyarrow"}
    code = f"import sys, engine.plugins.data; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("options", ROOTED)
def test_root_must_be_given(options):
    with pytest.raises(UsageError, match=r"^data\.root must be given"):
        check(options(), "data.")


@pytest.mark.parametrize("options", ROOTED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_data_folder_is_named(options, split, tmp_path):
    with pytest.raises(UsageError, match=r"^data\.root=.*/absent: there is no such folder.*$") as error:
        options(root=str(tmp_path / "absent")).build(split)
    assert "\n" not in str(error.value)


def test_records_in_memory_are_copies_in_the_order_asked_for():
    images = torch.arange(5 * 2 * 3 * 4).to(torch.uint8).view(5, 2, 3, 4)
    source = InMemory(images.clone(), torch.tensor([4, 3, 2, 1, 0]), "abcde")
    for indices in ([3, 0, 3], range(1, 4), (4,), []):
        records = source.records(indices)
        assert records.encoding == "raw"
        assert torch.equal(records.images, images[list(indices)])
        assert records.targets.tolist() == [4 - index for index in indices]
        records.images.fill_(0)
    assert torch.equal(source.records(range(5)).images, images)
    assert source.shape == (2, 3, 4)
    assert source.name_of(3) == "record 3"


def test_the_fingerprint_in_memory_follows_every_byte_and_label():
    images, targets = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0])
    prints = {InMemory(images, targets, "ab").fingerprint}
    for place in ((0, 0, 0, 0), (2, 0, 3, 3)):
        changed = images.clone()
        changed[place] = 1
        prints.add(InMemory(changed, targets, "ab").fingerprint)
    prints.add(InMemory(images, torch.tensor([0, 1, 1]), "ab").fingerprint)
    prints.add(InMemory(images.view(3, 1, 2, 8), targets, "ab").fingerprint)
    assert len(prints) == 5
    assert InMemory(images.clone(), targets.clone(), "ab").fingerprint in prints


def _folder(root):
    rng = np.random.default_rng(0)
    for number in range(24):
        path = root / "train" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(path)
    return Folder(root=str(root))


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_eight_threads_read_what_one_reads(kind, tmp_path):
    source = (Digits() if kind == "memory" else _folder(tmp_path)).build("train")
    random = Random(0)
    asked = [[random.randrange(len(source)) for _ in range(7)] for _ in range(200)]
    alone = [source.records(indices) for indices in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(source.records, asked))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.targets, other.targets)
        same = torch.equal if kind == "memory" else list.__eq__
        assert same(one.images, other.images)
