"""The picture of a batch, against pixels worked out by hand."""

from __future__ import annotations

import pytest
import torch

from engine.plugins.observers.pictures import grid


def test_colours_keep_their_proportion():
    images = torch.zeros(1, 3, 32, 32)
    images[:, 0], images[:, 1], images[:, 2] = -1.0, 0.0, 1.0  # what a normalised image may hold
    assert grid(images)[:, 5, 7].tolist() == [0, 128, 255]


def test_five_images_fill_two_rows_of_three():
    images = torch.zeros(5, 1, 40, 50)
    images[:, :, 0, 0] = 1.0
    picture = grid(images)
    assert picture.shape == (1, 2 * 41 - 1, 3 * 51 - 1)
    corners = [(top, left) for top in (0, 41) for left in (0, 51, 102)]
    assert [picture[0, top, left].item() for top, left in corners] == [255] * 5 + [128]  # the sixth place is empty


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (6, 3)])
def test_channels_that_can_be_shown_are(channels, shown):
    assert grid(torch.rand(1, channels, 32, 32)).shape == (shown, 32, 32)


def test_large_images_are_averaged_down():
    images = torch.zeros(1, 1, 256, 512)
    images[:, :, ::2] = 1.0  # every second line, so that the mean of any 4 x 4 block is a half
    images[:, :, :4, :4] = 0.0
    images[:, :, :4, 4:8] = 1.0
    picture = grid(images)
    assert picture.shape == (1, 64, 128)
    assert [picture[0, 0, column].item() for column in (0, 1, 2)] == [0, 255, 128]


def test_uniform_and_broken_images_are_black():
    images = torch.full((2, 1, 32, 32), 7.0)
    images[1] = float("nan")
    picture = grid(images)
    assert picture[0, :, :32].max() == 0
    assert picture[0, :, 33:].max() == 0


def test_bytes_and_half_precision_are_accepted():
    ramp = torch.arange(0, 256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(grid(ramp)[0, ::2, ::2], ramp[0, 0])
    assert torch.equal(grid(ramp.half())[0, ::2, ::2], ramp[0, 0])
