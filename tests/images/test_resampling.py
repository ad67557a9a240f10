"""Windows resized: against Pillow, which filters in fixed point, and against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_reference import ISAS, plan_for, resampled, run
from PIL import Image

every_isa = pytest.mark.parametrize("isa", ISAS)


def picture(rng: np.random.Generator, channels: int, height: int, width: int, nhwc: bool, count: int = 1):
    images = torch.from_numpy(rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8))
    return images.contiguous(memory_format=torch.channels_last) if nhwc else images


def windowed(images: torch.Tensor, box, size, *, mirrored: bool = False, beyond: bool = False):
    plan = plan_for(images)
    count = len(images)
    assert plan.window(torch.tensor([box] * count), torch.tensor([size] * count), beyond=beyond)
    assert plan.mirror(torch.tensor([mirrored] * count))
    return plan


def by_pillow(image: np.ndarray, box, size) -> np.ndarray:
    top, left, height, width = box
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    cut = Image.fromarray(np.ascontiguousarray(pixels)).crop((left, top, left + width, top + height))
    out = np.asarray(cut.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return out.reshape(*size, -1).transpose(2, 0, 1)


@every_isa
@pytest.mark.parametrize(("channels", "nhwc"), [(1, False), (3, False), (3, True)])
def test_crops_resized_are_within_a_grey_level_of_pillows(isa, channels, nhwc):
    rng = np.random.default_rng([channels, nhwc, ISAS.index(isa)])
    for _ in range(120):  # over 1,000 boxes where there are three instruction sets
        height, width = (int(size) for size in rng.integers(1, 120, 2))
        size = [int(number) for number in rng.integers(1, 100, 2)]
        tall, wide = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        box = [int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1)), tall, wide]
        images, mirrored = picture(rng, channels, height, width, nhwc), bool(rng.integers(2))
        out = run(windowed(images, box, size, mirrored=mirrored), images, torch.uint8, isa=isa)[0].numpy()
        wanted = by_pillow(images[0].numpy(), box, size)
        wanted = wanted[:, :, ::-1] if mirrored else wanted
        assert np.abs(out.astype(int) - wanted).max() <= 1, (height, width, box, size)


@every_isa
@pytest.mark.parametrize(
    ("box", "size"),
    [
        ([0, 0, 400, 640], [50, 80]),  # an eighth
        ([3, 5, 390, 620], [7, 9]),  # far less
        ([0, 0, 400, 640], [1, 1]),
        ([100, 200, 4, 5], [32, 40]),  # eightfold
        ([399, 639, 1, 1], [20, 30]),
        ([0, 0, 400, 17], [400, 300]),  # one axis stays as it is
        ([10, 0, 30, 640], [100, 640]),
    ],
)
@pytest.mark.parametrize("nhwc", [False, True])
def test_large_factors_are_within_a_grey_level_of_pillows(isa, box, size, nhwc):
    images = picture(np.random.default_rng(5), 3, 400, 640, nhwc)
    out = run(windowed(images, box, size), images, torch.uint8, isa=isa)[0].numpy()
    assert np.abs(out.astype(int) - by_pillow(images[0].numpy(), box, size)).max() <= 1


@every_isa
def test_windows_of_fractions_of_pixels_are_as_defined(isa):
    rng = np.random.default_rng(7)
    for turn in range(60):
        height, width = (int(size) for size in rng.integers(2, 60, 2))
        size = [int(number) for number in rng.integers(1, 60, 2)]
        tall, wide = rng.uniform(0.3, height), rng.uniform(0.3, width)
        box = [rng.uniform(0, height - tall), rng.uniform(0, width - wide), tall, wide]
        images = picture(rng, int(rng.choice([1, 3])), height, width, bool(turn % 2))
        plan = windowed(images, box, size, mirrored=bool(rng.integers(2)), beyond=bool(rng.integers(2)))
        out = run(plan, images, torch.uint8, isa=isa)[0].numpy()
        exactly = resampled(plan, images[0].numpy(), 0)
        assert np.abs(out - exactly).max() <= 0.5 + 1e-3, (height, width, box, size)


@every_isa
def test_images_of_one_pixel_fill_the_output_with_it(isa):
    for channels in (1, 3):
        images = picture(np.random.default_rng(1), channels, 1, 1, False)
        plan = windowed(images, [0, 0, 1, 1], [33, 21])
        out = run(plan, images, torch.uint8, isa=isa)
        assert torch.equal(out, images.expand(1, channels, 33, 21))


def test_a_window_that_must_not_see_beyond_itself_does_not():
    images = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    images[:, :, 5:15, 5:15] = 255
    inside = run(windowed(images, [5, 5, 10, 10], [30, 30]), images, torch.uint8)
    beyond = run(windowed(images, [5, 5, 10, 10], [30, 30], beyond=True), images, torch.uint8)
    assert bool((inside == 255).all())
    assert int(beyond[0, 0, 0, 0]) < 255
    assert int(beyond[0, 0, 15, 15]) == 255
