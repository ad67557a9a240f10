"""rand_augment: its operations against Pillow's, its strengths against torchvision's table, and its draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from engine import Key, UsageError
from engine.plugins.augment import RandAugment
from engine.plugins.augment import image_operations as operations
from engine.plugins.augment.rand_augment import SPACE, Sequences

KEY = Key.of(12).at("augment")
NAMES = [operation.__name__ for operation, _, _ in SPACE]


def sheared_x(image: Image.Image, amount: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, (1, amount, 0, 0, 1, 0), Image.Resampling.NEAREST)


def sheared_y(image: Image.Image, amount: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, amount, 1, 0), Image.Resampling.NEAREST)


def moved_x(image: Image.Image, amount: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -int(amount), 0, 1, 0))


def moved_y(image: Image.Image, amount: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, -int(amount)))


# Of each operation what Pillow does, which amounts are tried, by how many levels a pixel may differ, and how many may
# differ by more: those whose position lies between two pixels.
PILLOW = {
    "identity": (lambda image, amount: image, [0.0], 0, 0),
    "shear_x": (sheared_x, [0.3, -0.21], 0, 0.01),
    "shear_y": (sheared_y, [0.3, -0.21], 0, 0.01),
    "translate_x": (moved_x, [7.9, -3.2], 0, 0),
    "translate_y": (moved_y, [7.9, -3.2], 0, 0),
    "rotate": (lambda image, amount: image.rotate(amount), [30.0, -9.0], 0, 0.01),
    "brightness": (lambda image, amount: ImageEnhance.Brightness(image).enhance(1 + amount), [0.9, -0.27], 1, 0),
    "color": (lambda image, amount: ImageEnhance.Color(image).enhance(1 + amount), [0.9, -0.27], 2, 0),
    "contrast": (lambda image, amount: ImageEnhance.Contrast(image).enhance(1 + amount), [0.9, -0.27], 2, 0),
    "sharpness": (lambda image, amount: ImageEnhance.Sharpness(image).enhance(1 + amount), [0.9, -0.27], 2, 0),
    "posterize": (lambda image, amount: ImageOps.posterize(image, int(amount)), [8, 7, 4], 0, 0),
    "solarize": (lambda image, amount: ImageOps.solarize(image, amount * 255), [0.7, 0.0, 1.0], 0, 0),
    "autocontrast": (lambda image, amount: ImageOps.autocontrast(image), [0.0], 1, 0),
    "equalize": (lambda image, amount: ImageOps.equalize(image), [0.0], 0, 0),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_pillows(pictures, pil, of_pil, name, channels):
    expected_of, amounts, levels, outliers = PILLOW[name]
    images = pictures(4, channels)
    images[1] //= 3
    images[2, 0] = 7  # of a single level
    for amount in amounts:
        results = getattr(operations, name)(images, torch.full((4,), amount, dtype=torch.float64))
        assert results.dtype == torch.uint8
        for image, result in zip(images, results, strict=True):
            expected = of_pil(expected_of(pil(image), amount))
            off = np.abs(result.numpy().astype(int) - expected) > levels
            assert off.mean() <= outliers, f"{name} by {amount}"


def test_sharpness_leaves_the_outermost_pixels_and_tiny_images(pictures):
    images, amount = pictures(2, height=6, width=7), torch.full((2,), 0.9, dtype=torch.float64)
    result = operations.sharpness(images, amount)
    for edge in ((..., 0, slice(None)), (..., -1, slice(None)), (..., 0), (..., -1)):
        assert torch.equal(result[edge], images[edge])
    assert not torch.equal(result, images)
    assert torch.equal(operations.sharpness(images[:, :, :2], amount), images[:, :, :2])


def test_strengths_are_those_of_torchvisions_table():
    # Bin 9 of 31 is 0.3 of the range: torchvision's RandAugment, _AUGMENTATION_SPACE.
    by_name = {name: strength(9 / 30, 331, 662) for name, (_, strength, _) in zip(NAMES, SPACE, strict=True)}
    assert by_name == pytest.approx(
        {
            "identity": 0, "shear_x": 0.09, "shear_y": 0.09, "translate_x": 90, "translate_y": 45, "rotate": 9,
            "brightness": 0.27, "color": 0.27, "contrast": 0.27, "sharpness": 0.27, "posterize": 7, "solarize": 0.7,
            "autocontrast": 0, "equalize": 0,
        }
    )  # fmt: skip
    signed = {name for name, (_, _, signed) in zip(NAMES, SPACE, strict=True) if signed}
    assert signed == {"shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
                      "sharpness"}  # fmt: skip


def test_every_operation_and_sign_is_equally_likely():
    drawn = RandAugment().build().draw(KEY, torch.arange(14_000), (3, 32, 32))
    assert drawn.kinds.shape == (14_000, 2)
    pairs = torch.bincount(drawn.kinds[:, 0] * 14 + drawn.kinds[:, 1], minlength=196)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-4
    for kind, (_, strength, signed) in enumerate(SPACE):
        amounts = drawn.amounts[drawn.kinds == kind]
        size = strength(0.3, 32, 32)
        assert torch.allclose(amounts.abs(), torch.tensor(float(size)).double())
        negative = float((amounts < 0).double().mean())
        assert negative == pytest.approx(0.5, abs=0.06) if signed else negative == 0


def test_operations_follow_one_another_on_each_image(pictures):
    images = pictures(3)
    kinds = torch.tensor([[NAMES.index("posterize"), NAMES.index("rotate")], [0, 0],
                          [NAMES.index("rotate"), NAMES.index("solarize")]])  # fmt: skip
    amounts = torch.tensor([[4.0, 30.0], [0, 0], [-20.0, 0.5]], dtype=torch.float64)
    before = images.clone()
    result, _ = RandAugment().build().apply(images, torch.zeros(3), Sequences(kinds, amounts))

    def one(name: str, image: torch.Tensor, amount: float) -> torch.Tensor:
        return getattr(operations, name)(image[None], torch.tensor([amount]).double())

    assert torch.equal(result[0], one("rotate", one("posterize", images[0], 4)[0], 30)[0])
    assert torch.equal(result[1], images[1])
    assert torch.equal(result[2], one("solarize", one("rotate", images[2], -20)[0], 0.5)[0])
    assert torch.equal(images, before)
    floats, _ = RandAugment().build().apply(images.double() / 255, torch.zeros(3), Sequences(kinds, amounts))
    assert torch.allclose(floats, result.double() / 255)


def test_a_magnitude_beyond_the_bins_is_refused():
    with pytest.raises(UsageError, match=r"^augment\.rand_augment\.magnitude=31: the last .* is 30"):
        RandAugment(magnitude=31).build()
