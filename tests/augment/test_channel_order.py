"""channel_order against the pixels themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine import UsageError
from engine.plugins.augment import ChannelOrder


@pytest.mark.parametrize("order", ["bgr", "brg", "gbr", "grb", "rbg"])
def test_channels_come_in_the_order_of_the_word(order):
    colours = {"r": 10, "g": 20, "b": 30}
    images = torch.tensor([colours[c] for c in "rgb"], dtype=torch.uint8).view(1, 3, 1, 1).repeat(2, 1, 4, 5)
    found, targets = ChannelOrder(order).build().apply(images, torch.tensor([1, 2]), None)
    assert found.dtype == torch.float32
    assert targets.tolist() == [1, 2]
    assert np.allclose(found[1, :, 0, 0] * 255, [colours[c] for c in order])


def test_floats_keep_their_type_and_gray_images_all():
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(ChannelOrder().build().test(images), images.flip(1))
    gray = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(ChannelOrder().build().test(gray), gray)


def test_a_pass_is_the_augmentation(pictures, passed):
    images = pictures(12, 3)
    augmentation = ChannelOrder().build()
    for found in (passed(augmentation, images), passed(augmentation, images, test=True)):
        assert torch.allclose(found, images.flip(1).float() / 255, atol=1e-6)


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(UsageError, match=r"^augment\.channel_order: images have 2 channels"):
        ChannelOrder().build().test(torch.zeros(1, 2, 4, 4))
