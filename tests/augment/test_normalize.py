"""normalize against float64 arithmetic and published statistics."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine import Key, Records, UsageError
from engine.chain import Samples
from engine.host_to_device import Layout
from engine.plugins.augment import Normalize
from engine.plugins.augment.normalize import normalize, statistics
from engine.preparation import Preparation


class Memory:
    """Records in memory that count how many were read."""

    classes = ("a", "b")
    fingerprint = "memory"
    colour = None

    def __init__(self, images: torch.Tensor, encoded: bool = False, repeat: int = 1) -> None:
        self.images, self.encoded, self.repeat = images, encoded, repeat
        self.shape = tuple(images.shape[1:])
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images) * self.repeat

    def name_of(self, index: int) -> str:
        return f"record {index}"

    def records(self, indices: Sequence[int]) -> Records:
        self.read += indices
        images = self.images[torch.tensor(indices) % len(self.images)]
        targets = torch.zeros(len(indices), dtype=torch.int64)
        if self.encoded:
            return Records("encoded", [png(image) for image in images], targets)
        return Records("tensor" if images.is_floating_point() else "raw", images, targets)


def png(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def pictures(n: int, side: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    low = torch.tensor([0, 40, 200]).view(1, 3, 1, 1)
    return (torch.randint(0, 56, (n, 3, side, side), generator=generator) + low).to(torch.uint8)


def exact(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = images.astype(np.float64) / (255 if images.dtype == np.uint8 else 1)
    return values.mean((0, 2, 3)), values.std((0, 2, 3))


def test_statistics_that_the_source_knows_are_taken_and_no_record_is_read() -> None:
    source = Memory(pictures(5))
    source.colour = {"mean": [51.0, 102.0, 255.0], "covariance": [[6502.5, 1, 2], [1, 26010.0, 3], [2, 3, 65025.0]]}
    mean, std = statistics(source)
    np.testing.assert_allclose(mean.numpy(), [0.2, 0.4, 1.0])
    np.testing.assert_allclose(std.numpy() ** 2, [0.1, 0.4, 1.0])
    assert source.read == []


@pytest.mark.parametrize("n", [7, 2500])
def test_statistics_are_those_of_all_pixels(n: int) -> None:
    images = pictures(n)
    mean, std = statistics(Memory(images))
    expected_mean, expected_std = exact(images.numpy())
    np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=1e-12)
    np.testing.assert_allclose(std.numpy(), expected_std, rtol=1e-10)


def test_statistics_of_float_records_use_their_own_unit() -> None:
    images = torch.randn(50, 2, 4, 5, generator=torch.Generator().manual_seed(0)) * 3 + 10
    mean, std = statistics(Memory(images))
    expected_mean, expected_std = exact(images.numpy())
    np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=1e-10)
    np.testing.assert_allclose(std.numpy(), expected_std, rtol=1e-8)


def test_statistics_of_encoded_records_are_those_of_the_decoded_images() -> None:
    images = pictures(12)
    mean, std = statistics(Memory(images, encoded=True))
    expected_mean, expected_std = exact(images.numpy())
    np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=1e-12)
    np.testing.assert_allclose(std.numpy(), expected_std, rtol=1e-10)


class Photographs:
    """JPEG files of many sizes, smooth and sharp, some so large that they are reduced while they are decoded."""

    classes, shape, fingerprint, colour = ("any",), (3, 32, 32), "photographs", None

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.files = []
        for number in range(12):
            coarse = rng.integers(0, 256, (7, 9, 3), np.uint8)
            image = Image.fromarray(coarse).resize((70 + 31 * number, 50 + 23 * number), Image.Resampling.BICUBIC)
            image.paste((250, 10, 40), (9, 11, 30, 29))
            out = io.BytesIO()
            image.save(out, "JPEG", quality=90)
            self.files.append(out.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def name_of(self, index: int) -> str:
        return f"record {index}"

    def pictures(self, indices: torch.Tensor) -> None:
        return None

    def records(self, indices: Sequence[int]) -> Records:
        return Records("encoded", [self.files[index] for index in indices], torch.zeros(len(indices)).long())


@pytest.mark.parametrize("key", [None, Key.of(0)], ids=["evaluation", "training"])
def test_statistics_of_jpeg_files_are_those_of_the_pixels_that_the_network_gets(key: Key | None) -> None:
    """Batches are made by a native pass over its own decoding, at full size in an evaluation."""
    source, rows = Photographs(), torch.arange(12)
    batch, _, _ = Preparation(source, {}, Layout(torch.device("cpu")), key).batch(Samples(rows, rows, 0))
    mean, std = statistics(source)
    expected_mean, expected_std = exact(batch.numpy())
    tolerance = {"rtol": 0, "atol": 0.25 / 255}
    np.testing.assert_allclose(mean.numpy(), expected_mean, **tolerance)
    np.testing.assert_allclose(std.numpy(), expected_std, **tolerance)


def test_a_large_source_is_sampled_the_same_way_each_time_from_all_its_parts() -> None:
    first, second = (Memory(pictures(10, side=1), repeat=12_345) for _ in range(2))
    mean, std = statistics(first)
    again = statistics(second)
    assert torch.equal(mean, again[0])
    assert torch.equal(std, again[1])
    assert first.read == second.read
    drawn = np.array(first.read[1:])  # the first record is read once more, for its encoding
    assert len(drawn) == 60_000
    assert drawn.max() < len(first)
    shares = np.histogram(drawn, bins=10, range=(0, len(first)))[0]
    assert shares.min() > 5_990
    assert shares.max() < 6_010
    np.testing.assert_allclose(mean.numpy(), exact(first.images.numpy())[0], rtol=0.02)


def test_mnist_statistics_are_the_published_ones(real_data: Callable[[str], Path]) -> None:
    packed = gzip.decompress((real_data("mnist") / "train-images-idx3-ubyte.gz").read_bytes())
    digits = torch.frombuffer(bytearray(packed[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
    mean, std = statistics(Memory(digits))
    assert mean.item() == pytest.approx(0.13066, abs=5e-6)
    assert std.item() == pytest.approx(0.30811, abs=5e-6)


def test_normalized_images_equal_float64_arithmetic() -> None:
    images = pictures(20)
    mean, std = torch.tensor([0.1, 0.26, 0.9]).double(), torch.tensor([0.05, 0.3, 0.01]).double()
    result = normalize(images, mean, std)
    exactly = (images.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert result.dtype == torch.float32
    assert (result.double() - exactly).abs().max() <= 4 * torch.finfo(torch.float32).eps * 100  # |mean / std| <= 90
    of_floats = normalize(images.float() / 255, mean, std)
    torch.testing.assert_close(of_floats, result, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_are_never_edited_and_evaluation_sees_the_same_numbers(dtype: torch.dtype) -> None:
    images = pictures(5).to(dtype)
    before = images.clone()
    augmentation = Normalize(mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3]).build()
    augmentation.prepare(lambda: Memory(images))
    targets = torch.arange(5)
    trained, kept = augmentation.apply(images, targets, None)
    assert torch.equal(trained, augmentation.test(images))
    assert kept is targets
    assert torch.equal(images, before)


def test_without_numbers_the_training_images_get_mean_0_and_std_1() -> None:
    images = pictures(100)
    augmentation = Normalize().build()
    augmentation.prepare(lambda: Memory(images))
    values = augmentation.test(images).double()
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(values.std((0, 2, 3), unbiased=False), torch.ones(3).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("mean", "std", "complaint"),
    [
        ([0.5], [], "1 mean and 0 std"),
        ([0.5, 0.5, 0.5], [0.5, 0.0, 0.5], "above 0"),
        ([0.5, 0.5], [0.5, 0.5], "3 channels"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_by_name(mean: list[float], std: list[float], complaint: str) -> None:
    with pytest.raises(UsageError, match=rf"augment\.normalize.*{complaint}"):
        Normalize(mean=mean, std=std).build().test(pictures(2))


def test_given_numbers_need_no_training_images() -> None:
    def forbidden() -> Memory:
        raise AssertionError("the training images were opened")

    augmentation = Normalize(mean=[0.5], std=[0.25]).build()
    augmentation.prepare(forbidden)
    images = pictures(4)
    torch.testing.assert_close(augmentation.test(images), (images / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("unit", [1, 0.1])
def test_a_constant_channel_is_refused(unit: float) -> None:
    images = pictures(3)
    images[:, 1] = 9
    images = images if unit == 1 else images * unit
    with pytest.raises(UsageError, match=r"augment\.normalize.*constant"):
        Normalize().build().prepare(lambda: Memory(images))
