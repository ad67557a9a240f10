"""A store gives what was packed: to the bit, whatever the source, the threads and the size of its files."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from packed import Given, contents, files, opened, pack, photographs, raw
from PIL import Image, ImageOps
from torch import Tensor

from engine import UsageError
from engine.interfaces import Records
from engine.plugins.data import Digits, Folder
from engine.plugins.stores import Store
from engine.plugins.stores.layout import crc32c, read_meta
from engine.preparation import read
from engine.testing import check_source


def everything(source) -> tuple[Tensor, Tensor]:
    return read(source, range(len(source)))


def assert_same(one, other) -> None:
    for a, b in zip(everything(one), everything(other), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert tuple(one.shape) == tuple(other.shape)
    assert list(one.classes) == list(other.classes)


def test_an_open_store_takes_28_bytes_a_record(tmp_path):
    count = 20_000
    pack(tmp_path / "train", raw(count, (1, 1, 1)))
    tracemalloc.start()
    try:
        store = opened(tmp_path / "train")
        assert 28 * count <= tracemalloc.get_traced_memory()[0] < 31 * count
    finally:
        tracemalloc.stop()
    assert len(store) == count


def test_crc32c_is_castagnolis():
    """The check value of RFC 3720 and the catalogue of CRCs, and two of the RFC's examples (appendix B.4)."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(np.full(32, 255, np.uint8)) == 0x62A8AB43


@pytest.mark.parametrize("shard_size", [1, 500, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9), (4, 3, 3)])
def test_raw_pixels_come_back(tmp_path, shape, threads, shard_size):
    source = raw(14, shape)
    meta = pack(tmp_path / "train", source, shard_size=shard_size, threads=threads)
    store = opened(tmp_path / "train")
    assert_same(store, source)
    assert store.records(range(3)).images.is_contiguous()  # strides decide which kernels compute
    each = np.prod(shape)
    assert len(meta.shards) == -(-14 // max(1, shard_size // each))
    random = torch.randperm(14).tolist() * 2
    assert torch.equal(store.records(random).images, source.images[random])
    assert len(store.records([]).images) == 0


def test_the_digits(tmp_path):
    for split in ("train", "test"):
        source = Digits().build(split)
        pack(tmp_path / split, source, shard_size=50_000)
        assert_same(Store(root=str(tmp_path)).build(split), source)
    check_source(Store(root=str(tmp_path)))


@pytest.mark.parametrize("size", [None, 16, 31])
def test_encoded_files_come_back_and_decode_to_the_same_pixels(tmp_path, size):
    for number, data in enumerate(files()):
        path = tmp_path / "photos" / "train" / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    os.symlink("train", tmp_path / "photos" / "test")
    source = Folder(root=str(tmp_path / "photos"), size=24).build("train")
    for split in ("train", "test"):
        pack(tmp_path / "store" / split, source, "encoded", shard_size=3000)
    store = Store(root=str(tmp_path / "store"), size=size).build("train")
    assert store.records(range(len(store))).images == source.records(range(len(source))).images
    assert_same(store, Folder(root=str(tmp_path / "photos"), size=size or 24).build("train"))
    check_source(Store(root=str(tmp_path / "store"), size=size))


def upright(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def test_full_pixels_are_pillows(tmp_path):
    source = photographs()
    store, encoded = opened_pixels(tmp_path, source), source.records(range(len(source))).images
    sizes = []
    for index, data in enumerate(encoded):
        expected = upright(data)
        if index in (16, 17):  # transparent and 16 bits: Pillow alone would show hidden colours and clip
            continue
        sizes.append(expected.shape[:2])
        one = store(max(expected.shape[:2]))
        pixels = one._read(index, index + 1).reshape(expected.shape)
        assert np.array_equal(pixels, expected)
    assert len(set(sizes)) > 5


def opened_pixels(tmp_path, source, shorter_side=None):
    pack(tmp_path / "train", source, shorter_side=shorter_side, shard_size=20_000)
    return lambda size=None: opened(tmp_path / "train", size)


def test_pixels_of_other_sizes_are_fitted_as_the_folder_does_it(tmp_path):
    """Pillow's ImageOps.fit is what data=folder does to an image that is not reduced while decoding."""
    source = photographs()
    images, targets = everything(opened_pixels(tmp_path, source)())
    assert images.shape == (len(source), 3, 24, 24)
    assert torch.equal(targets, source.targets)
    decoded, _ = everything(source)
    for index, data in enumerate(source.images):
        if index in (16, 17):
            continue
        fitted = np.asarray(ImageOps.fit(Image.fromarray(upright(data)), (24, 24), Image.Resampling.BILINEAR))
        assert np.abs(images[index].permute(1, 2, 0).numpy().astype(int) - fitted).max() <= 1
        if index != 18:  # which the folder reduces while decoding
            assert (images[index].int() - decoded[index].int()).abs().max() <= 1


def test_the_shorter_side_is_reduced_by_an_antialiased_filter(tmp_path):
    source = photographs()
    store = opened_pixels(tmp_path, source, shorter_side=28)(28)
    for index, data in enumerate(source.images):
        if index in (16, 17):
            continue
        image = Image.fromarray(upright(data))
        scale = 28 / min(image.size)
        if scale < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        expected = np.asarray(image)
        assert store._index.sizes[index].tolist() == list(expected.shape[:2])
        assert np.array_equal(store._read(index, index + 1).reshape(expected.shape), expected)


def test_raw_pixels_are_reduced_too(tmp_path):
    source = raw(6, (3, 40, 30))
    pack(tmp_path / "train", source, shorter_side=15)
    store = opened(tmp_path / "train")
    assert store.shape == (3, 20, 15)
    images, _ = everything(store)
    for image, original in zip(images, source.images, strict=True):
        expected = Image.fromarray(original.permute(1, 2, 0).numpy()).resize((15, 20), Image.Resampling.BILINEAR)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_both_splits_are_read_in_one_shape(tmp_path):
    """In the images' own size where all have it; not where those of the other split differ."""
    photos = photographs()
    same = Given(photos.images[:1] * 4, torch.zeros(4, dtype=torch.int64), shape=photos.shape)
    pack(tmp_path / "train", same)
    height, width = upright(photos.images[0]).shape[:2]
    assert opened(tmp_path / "train").shape == (3, height, width)
    pack(tmp_path / "test", photos)
    assert opened(tmp_path / "train").shape == opened(tmp_path / "test").shape == photos.shape
    check_source(Store(root=str(tmp_path)))


def test_a_store_packs_again_to_the_same_bytes(tmp_path):
    pack(tmp_path / "first" / "train", raw(40), shard_size=2000)
    first = opened(tmp_path / "first" / "train")
    pack(tmp_path / "again" / "train", first, shard_size=2000)
    assert_same(opened(tmp_path / "again" / "train"), first)
    one, other = contents(tmp_path / "first"), contents(tmp_path / "again")
    assert {name: one[name] for name in one if "meta" not in name} == {n: other[n] for n in other if "meta" not in n}
    assert opened(tmp_path / "again" / "train").fingerprint == first.fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_of_a_regression(tmp_path, dtype):
    targets = torch.randn(20, 2, dtype=dtype)
    pack(tmp_path / "train", Given(raw().images, targets, classes=()), shard_size=500)
    store = opened(tmp_path / "train")
    assert torch.equal(store.records(range(20)).targets, targets)
    assert store.records([3]).targets.dtype == dtype
    check_source(store)


@pytest.mark.parametrize("content", ["pixels", "encoded"])
def test_mean_and_covariance_are_those_of_all_pixels(tmp_path, content):
    """numpy in float64, over the pixels that the store holds (of encoded files: of the whole decoded images)."""
    source = photographs()
    encoded = source.images[:16] + source.images[18:]
    source = Given(encoded, torch.zeros(len(encoded), dtype=torch.int64), shape=(3, 24, 24))
    meta = pack(tmp_path / "train", source, content, shard_size=4000, threads=2)
    pixels = np.concatenate([upright(data).reshape(-1, 3) for data in encoded]).astype(np.float64)
    assert meta.colour["pixels"] == len(pixels)
    np.testing.assert_allclose(meta.colour["mean"], pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(meta.colour["covariance"], np.cov(pixels.T, bias=True), rtol=1e-9)
    assert opened(tmp_path / "train").colour == meta.colour


def test_statistics_of_many_pixels_stay_exact(tmp_path):
    images = torch.full((9, 1, 400, 400), 255, dtype=torch.uint8)
    images[0] = 254
    meta = pack(tmp_path / "train", Given(images, torch.zeros(9, dtype=torch.int64)))
    assert meta.colour["mean"] == [pytest.approx(255 - 1 / 9, rel=1e-15)]
    assert meta.colour["covariance"] == [[pytest.approx(8 / 81, rel=1e-15)]]


def test_the_fingerprint_follows_records_and_classes(tmp_path):
    first = raw()
    changed, relabelled = raw(), raw()
    changed.images[3, 0, 0, 0] ^= 1
    relabelled.targets[3] = (relabelled.targets[3] + 1) % 3
    renamed = Given(first.images, first.targets, "xyz")
    prints = [
        pack(tmp_path / str(number) / "train", source).fingerprint
        for number, source in enumerate([first, changed, relabelled, renamed, raw()])
    ]
    assert len(set(prints[:4])) == 4
    assert prints[4] == prints[0]


def test_a_record_is_named_by_its_file(tmp_path):
    pack(tmp_path / "train", raw(20), shard_size=8 * 192)
    assert opened(tmp_path / "train").name_of(17) == f"{tmp_path}/train/data-00002.bin: record 17"


@pytest.mark.parametrize("index", [-1, 20])
def test_records_that_are_not_there(tmp_path, index):
    pack(tmp_path / "train", raw(20))
    with pytest.raises(IndexError, match="has records 0 to 19"):
        opened(tmp_path / "train").records([0, index])


def test_what_a_store_cannot_hold_is_refused(tmp_path):
    floats, halves, wild = raw(), Given(raw().images, torch.zeros(20, 1).half(), ()), raw()
    floats.records = lambda indices: Records("tensor", torch.rand(len(indices), 3, 8, 8), torch.zeros(len(indices)))
    wild.targets[7] = 3
    broken = {
        "prepared floats": (floats, {}),
        "no encoded images": (raw(), {"content": "encoded"}),
        "targets of torch.float16": (halves, {}),
        "record 7 is of class 3, but the classes are 0 to 2": (wild, {}),
        "images of 2 channels are not reduced": (raw(5, (2, 8, 8)), {"shorter_side": 4}),
        "holds no images": (raw(0), {}),
    }
    for reason, (source, options) in broken.items():
        with pytest.raises(UsageError, match=reason):
            pack(tmp_path / reason.replace(" ", "_"), source, **options)
    pack(tmp_path / "train", raw(5, (4, 8, 8)))
    with pytest.raises(UsageError, match="images of 4 channels can be read in their own size only"):
        opened(tmp_path / "train", 16)


def test_class_names_of_any_kind(tmp_path):
    names = ["naïve", "a b", os.fsdecode(b"caf\xe9")]
    pack(tmp_path / "train", Given(raw().images, raw().targets, names))
    assert list(opened(tmp_path / "train").classes) == names


def test_real_photographs(tmp_path, real_data):
    sample = sorted(Path(real_data("imagenet-sample")).glob("*.JPEG"))[:24]
    for split in ("train", "test"):
        (tmp_path / "photos" / split / "all").mkdir(parents=True)
        for path in sample:
            os.symlink(path, tmp_path / "photos" / split / "all" / path.name)
    source = Folder(root=str(tmp_path / "photos"), size=96).build("train")
    pack(tmp_path / "encoded" / "train", source, "encoded", threads=2)
    assert_same(opened(tmp_path / "encoded" / "train"), source)
    pack(tmp_path / "pixels" / "train", source, "pixels", 128, threads=2)
    assert read_meta(tmp_path / "pixels" / "train").records == 24
    images, _ = everything(opened(tmp_path / "pixels" / "train"))
    decoded, _ = everything(source)
    assert (images.float() - decoded.float()).abs().mean() < 3  # twice resampled; another photograph is 50 off
