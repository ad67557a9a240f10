"""cutout and random_erasing: masks made pixel by pixel, and the laws of chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from engine import Key, UsageError
from engine.plugins.augment import Cutout, RandomErasing
from engine.plugins.augment.erasing import Erasure
from engine.plugins.augment.noise import Seeds

KEY = Key.of(6).at("augment")
NONE = torch.zeros(1)
MANY = torch.arange(20_000)


def masks(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return bool [n, 1, height, width]: what lies in boxes (top, left, bottom, right)."""
    mask = torch.zeros(len(boxes), 1, height, width, dtype=torch.bool)
    for row, (top, left, bottom, right) in enumerate(boxes.tolist()):
        mask[row, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return mask


@pytest.mark.parametrize("size", [1, 5, 8, 30])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_square_is_cut_out(pictures, passed, size, channels):
    images = pictures(50, channels, 12, 17).clamp(min=1)
    augmentation = Cutout(size).build()
    drawn = augmentation.draw(KEY, torch.arange(50), (channels, 12, 17))
    erased = masks(drawn, 12, 17)
    assert bool(erased.any(3).any(2).all()), "its centre is in the image, so some of it is"
    for given in (images, images.float() / 255):
        result, _ = augmentation.apply(given, NONE, drawn)
        assert torch.equal(result, given * ~erased)
    assert torch.equal(passed(augmentation, images, drawn), images * ~erased)


def test_every_pixel_is_equally_likely_the_centre_of_a_square():
    boxes = Cutout(7).build().draw(KEY, MANY, (1, 4, 5))
    assert ((boxes[:, 2:] - boxes[:, :2]) == 7).all()
    centres = torch.bincount((boxes[:, 0] + 3) * 5 + boxes[:, 1] + 3, minlength=20)
    assert len(centres) == 20
    assert stats.chisquare(centres.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("value", [[0.0], [0.2, 0.4, 0.8]])
def test_rectangles_are_set_to_the_value(pictures, passed, value):
    images = pictures(30)
    augmentation = RandomErasing(1.0, value=value).build()
    drawn = augmentation.draw(KEY, torch.arange(30), (3, 40, 52))
    erased = masks(drawn.boxes, 40, 52)
    colour = torch.tensor(value).view(1, -1, 1, 1)
    result, _ = augmentation.apply(images, NONE, drawn)
    expected = torch.where(erased, (colour * 255).byte(), images)
    assert torch.equal(result, expected)
    assert torch.equal(passed(augmentation, images, drawn), expected)
    floats, _ = augmentation.apply(images.float() - 99, NONE, drawn)
    assert torch.equal(floats, torch.where(erased, colour, images.float() - 99))


def test_rectangles_of_noise_are_normal_and_not_fused(pictures, passed):
    images = pictures(40)
    augmentation = RandomErasing(1.0, random=True).build()
    drawn = augmentation.draw(KEY, torch.arange(40), (3, 40, 52))
    result, _ = augmentation.apply(images, NONE, drawn)
    erased = masks(drawn.boxes, 40, 52).expand_as(images)
    assert torch.equal(result[~erased], images[~erased].float() / 255)
    assert stats.kstest(result[erased].numpy(), stats.norm.cdf).pvalue > 1e-3
    assert passed(augmentation, images, drawn) is None


def test_the_chance_the_area_the_shape_and_the_place_are_as_asked_for():
    drawn = RandomErasing(0.25, scale=[0.02, 0.2], ratio=[0.5, 2]).build().draw(KEY, MANY, (3, 3000, 3000)).boxes
    extents = (drawn[:, 2:] - drawn[:, :2]).double().numpy()
    chosen = extents.prod(1) > 0
    assert chosen.mean() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / len(MANY)) ** 0.5)
    height, width = extents[chosen].T
    assert stats.kstest(height * width / 3000**2, stats.uniform(0.02, 0.18).cdf).pvalue > 1e-3
    assert stats.kstest(np.log(height / width), stats.uniform(-np.log(2), 2 * np.log(2)).cdf).pvalue > 1e-3
    place = drawn[chosen][:, 0].numpy() / (3000 - height + 1)
    assert stats.kstest(place + 0.5 / 3000, stats.uniform().cdf).pvalue > 1e-3


def test_a_rectangle_that_fits_nowhere_is_left_out():
    drawn = RandomErasing(1.0, scale=[0.9, 1.0], ratio=[3.0, 3.3]).build().draw(KEY, MANY[:100], (1, 20, 20))
    assert int((drawn.boxes[:, 2:] - drawn.boxes[:, :2]).abs().sum()) == 0


def test_what_cannot_be_meant_is_refused_by_name():
    for options, complaint in (
        (RandomErasing(scale=[0.5, 0.1]), r"\.scale=\[0.5, 0.1\]"),
        (RandomErasing(ratio=[0.0, 0.1]), r"\.ratio=\[0.0, 0.1\]"),
        (RandomErasing(value=[0.5], random=True), ": value has no meaning with random=true"),
    ):
        with pytest.raises(UsageError, match=rf"^augment\.random_erasing{complaint}"):
            options.build()
    with pytest.raises(UsageError, match=r"value has 2 numbers, but the images have 3 channels"):
        RandomErasing(value=[0.1, 0.2]).build().draw(KEY, MANY[:2], (3, 8, 8))


def test_boxes_that_are_given_are_erased_as_given():
    images = torch.full((2, 1, 6, 6), 9, dtype=torch.uint8)
    boxes = torch.tensor([[1, 2, 3, 6], [0, 0, 0, 0]])
    result, _ = RandomErasing().build().apply(images, NONE, Erasure(boxes, Seeds(KEY, torch.arange(2))))
    assert (result == 0).sum((1, 2, 3)).tolist() == [8, 0]
