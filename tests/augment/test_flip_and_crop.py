"""flip and pad_crop against PIL, brute force and the laws of chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from engine import Key, UsageError
from engine.plugins.augment import AlternatingFlip, Flip, PadCrop
from engine.plugins.augment.flip import flip
from engine.plugins.augment.pad_crop import pad_crop

KEY = Key.of(3).at("augment")
SHAPE = (3, 9, 7)


def pictures(n: int, channels: int = 3, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    images = torch.randint(0, 256, (n, channels, 9, 7), generator=torch.Generator().manual_seed(1))
    return images.to(dtype)


def as_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("pattern", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]])
def test_flip_is_pil_mirror_of_exactly_the_chosen_images(pattern: list[int]) -> None:
    images = pictures(4)
    before = images.clone()
    flipped = flip(images, torch.tensor(pattern, dtype=torch.bool))
    for image, mirrored, result in zip(images, pattern, flipped, strict=True):
        expected = ImageOps.mirror(as_pil(image)) if mirrored else as_pil(image)
        assert np.array_equal(np.asarray(expected), result.permute(1, 2, 0).numpy())
    assert torch.equal(images, before)
    assert flipped.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("padding", [0, 1, 4, 9])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_zero_crop_at_every_offset_is_pil_crop_of_pil_expand(padding: int, dtype: torch.dtype) -> None:
    places = [(down, right) for down in range(2 * padding + 1) for right in range(2 * padding + 1)]
    images = pictures(len(places), dtype=dtype)
    before = images.clone()
    crops = pad_crop(images, torch.tensor(places), padding)
    for image, (down, right), crop in zip(images, places, crops, strict=True):
        expanded = ImageOps.expand(as_pil(image.to(torch.uint8)), padding)
        expected = expanded.crop((right, down, right + 7, down + 9))
        assert np.array_equal(np.asarray(expected), crop.permute(1, 2, 0).numpy())
    assert crops.dtype == dtype
    assert torch.equal(images, before)


@pytest.mark.parametrize("padding", [1, 6])
def test_reflecting_crop_at_every_offset_is_numpys_reflection(padding: int) -> None:
    places = [(down, right) for down in range(2 * padding + 1) for right in range(2 * padding + 1)]
    images = pictures(len(places), channels=1)
    crops = pad_crop(images, torch.tensor(places), padding, "reflect")
    for image, (down, right), crop in zip(images, places, crops, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        assert np.array_equal(padded[:, down : down + 9, right : right + 7], crop.numpy())


def test_channels_last_images_are_cropped_alike() -> None:
    images = pictures(5, dtype=torch.float32)
    offsets = torch.tensor([[0, 0], [2, 1], [4, 4], [1, 3], [2, 2]])
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(pad_crop(strided, offsets, 2), pad_crop(images, offsets, 2))


@pytest.mark.parametrize("options", [Flip(), PadCrop()])
def test_a_draw_depends_on_its_sample_and_not_on_the_batch(options: Flip | PadCrop) -> None:
    augmentation = options.build()
    samples = torch.tensor([5, 0, 2**40, 77, 6])
    together = augmentation.draw(KEY, samples, SHAPE)
    alone = torch.cat([augmentation.draw(KEY, sample.view(1), SHAPE) for sample in samples])
    assert torch.equal(together, alone)
    many = torch.arange(1000)
    assert torch.equal(augmentation.draw(KEY, many.flip(0), SHAPE).flip(0), augmentation.draw(KEY, many, SHAPE))
    assert not torch.equal(augmentation.draw(KEY, many, SHAPE), augmentation.draw(KEY.at("another"), many, SHAPE))


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_flips_is_the_probability(probability: float) -> None:
    n = 100_000
    mirrored = Flip(probability=probability).build().draw(KEY, torch.arange(n), SHAPE)
    tolerance = 5 * (probability * (1 - probability) / n) ** 0.5  # five standard deviations of a binomial share
    assert abs(mirrored.double().mean().item() - probability) <= tolerance


def test_every_crop_offset_is_equally_likely() -> None:
    n, padding = 100_000, 4
    offsets = PadCrop(padding=padding).build().draw(KEY, torch.arange(n), SHAPE)
    counts = torch.bincount(offsets[:, 0] * 9 + offsets[:, 1], minlength=81).double()
    assert len(counts) == 81
    expected = n / 81
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert 37 < chi_squared < 143  # 80 degrees of freedom: mean 80, five standard deviations of 12.6


def test_padding_that_cannot_be_reflected_is_refused_by_name() -> None:
    augmentation = PadCrop(padding=7, fill="reflect").build()
    with pytest.raises(UsageError, match=r"augment\.pad_crop\.padding=7.*at most 6"):
        augmentation.draw(KEY, torch.arange(2), SHAPE)


def test_apply_does_what_draw_chose_and_leaves_targets_and_test_images_alone() -> None:
    images, targets = pictures(64), torch.arange(64)
    for options in (Flip(), PadCrop(padding=2)):
        augmentation = options.build()
        drawn = augmentation.draw(KEY, targets, SHAPE)
        result, kept = augmentation.apply(images, targets, drawn)
        reference = flip(images, drawn) if isinstance(options, Flip) else pad_crop(images, drawn, 2)
        assert torch.equal(result, reference)
        assert not torch.equal(result, images)
        assert kept is targets
        assert augmentation.test(images) is images


def test_alternating_flips_show_every_image_both_ways_in_two_epochs() -> None:
    augmentation = AlternatingFlip().build()
    records = torch.arange(10_000)
    epochs = [augmentation.draw_by_record(KEY, records, epoch, SHAPE) for epoch in range(4)]
    assert abs(epochs[0].double().mean().item() - 0.5) <= 5 * (0.25 / 10_000) ** 0.5
    assert torch.equal(epochs[1], ~epochs[0])
    assert torch.equal(epochs[2], epochs[0])
    assert torch.equal(epochs[3], epochs[1])
    assert torch.equal(augmentation.draw_by_record(KEY, records[50:60], 2, SHAPE), epochs[2][50:60])
    assert augmentation.by_record
