"""Resizes and crops against Pillow, and what is drawn against the laws of chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from engine import Key, UsageError
from engine.plugins.augment import CenterCrop, RandomCrop, RandomResizedCrop, RandomShortestSize, Resize

KEY = Key.of(5).at("augment")
MANY = torch.arange(20_000)


def sizes_of(*sizes: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(sizes)


def same(height: int, width: int) -> torch.Tensor:
    return torch.tensor([height, width]).expand(len(MANY), 2)


@pytest.mark.parametrize(
    ("size", "wanted"),
    # The longer side is int(size * longer / shorter), as torchvision's Resize documents it.
    [((480, 640), (256, 341)), ((640, 480), (341, 256)), ((375, 500), (256, 341)), ((100, 100), (256, 256)),
     ((3, 1000), (256, 85333)), ((299, 300), (256, 256))],
)  # fmt: skip
def test_the_longer_side_is_in_proportion_rounded_down(size, wanted):
    windows = Resize().build().test_windows(sizes_of(size))
    assert windows.sizes.tolist() == [list(wanted)]
    assert windows.boxes.tolist() == [[0, 0, *size]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "width"), [(20, None), (90, None), (17, 66)])
def test_resized_images_are_pillows(pictures, pil, of_pil, channels, size, width):
    images = pictures(3, channels)
    results = Resize(size, width).build().test(images)
    wanted = (width or size * 52 // 40, size)
    for image, result in zip(images, results, strict=True):
        expected = of_pil(pil(image).resize(wanted, Image.Resampling.BILINEAR))
        assert np.abs(result.numpy().astype(int) - expected).max() <= 1


def test_a_window_is_cropped_before_it_is_resized(pictures, pil, of_pil):
    augmentation = RandomResizedCrop(24, 20).build()
    images = pictures(20)
    drawn = augmentation.draw(KEY, torch.arange(20), (3, 40, 52))
    results, _ = augmentation.apply(images, torch.zeros(20), drawn)
    for image, (top, left, height, width), result in zip(images, drawn.boxes.tolist(), results, strict=True):
        window = pil(image).crop((int(left), int(top), int(left + width), int(top + height)))
        expected = of_pil(window.resize((20, 24), Image.Resampling.BILINEAR))
        assert np.abs(result.numpy().astype(int) - expected).max() <= 1


def test_an_evaluation_resizes_and_crops_the_middle(pictures, pil, of_pil):
    images = pictures(3, height=61, width=45)
    results = RandomResizedCrop(28, test_resize=33).build().test(images)
    for image, result in zip(images, results, strict=True):
        resized = pil(image).resize((33, 33 * 61 // 45), Image.Resampling.BILINEAR)  # 44 pixels high
        expected = of_pil(resized.crop((2, 8, 30, 36)))  # (33 - 28) / 2 rounds to the even 2
        assert np.abs(result.numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("options", "resize", "size"),
    [(RandomResizedCrop(), 256, 224), (RandomResizedCrop(176), 201, 176),
     (RandomResizedCrop(test_resize=232), 232, 224), (RandomResizedCrop(96, test_size=112), 128, 112)],
)  # fmt: skip
def test_what_an_evaluation_resizes_to(options, resize, size):
    # Of an image of r x r, the window is (r - s) / 2 from the edge, and shows its own pixels.
    windows = options.build().test_windows(sizes_of((resize, resize)))
    edge = round((resize - size) / 2)
    assert windows.boxes.tolist() == [[edge, edge, size, size]]


@pytest.mark.parametrize("size", [(50, 61), (51, 60), (49, 49)])
def test_the_middle_is_pillows(pictures, pil, of_pil, size):
    images = pictures(2, height=size[0], width=size[1])
    for test in ("center", "whole"):
        results = CenterCrop(30, 41, test=test).build().test(images)
        top, left = round((size[0] - 30) / 2), round((size[1] - 41) / 2)  # Python rounds a half to the even number
        box = (left, top, left + 41, top + 30) if test == "center" else (0, 0, size[1], size[0])
        for image, result in zip(images, results, strict=True):
            assert np.array_equal(result.numpy(), of_pil(pil(image).crop(box)))


def test_small_images_stand_in_the_middle_of_black(pictures):
    images = pictures(2, height=5, width=8)
    result = CenterCrop(8, 7, pad_if_needed=True).build().test(images)
    # Three rows are missing: one above, two below; of eight columns the first seven are (8 - 7) / 2 = 0.5, even 0.
    assert torch.equal(result[:, :, 1:6], images[:, :, :, :7])
    assert int(result[:, :, :1].sum()) == int(result[:, :, 6:].sum()) == 0


@pytest.mark.parametrize("name", ["center_crop", "random_crop"])
def test_small_images_are_refused_by_name(name):
    augmentation = {"center_crop": CenterCrop, "random_crop": RandomCrop}[name]().build()
    with pytest.raises(UsageError, match=rf"augment\.{name}.*200x300 is smaller than the crop of 224x224; put resize"):
        augmentation.draw_windows(KEY, torch.arange(2), sizes_of((500, 400), (200, 300)))


@pytest.mark.parametrize("pad", [False, True])
def test_every_place_of_a_crop_is_equally_likely(pad):
    height, width = (6, 7) if not pad else (2, 1)  # with padding: 4 - 2 = 2 pixels either side, so 3 places and 4
    drawn = RandomCrop(4, pad_if_needed=pad).build().draw_windows(KEY, MANY, same(height, width))
    down, right = (drawn.boxes[:, side].long() for side in (0, 1))
    first = torch.tensor([min(0, height - 4), min(0, width - 4)])
    places = (down - first[0]) * 4 + right - first[1]
    counts = torch.bincount(places, minlength=12)
    assert len(counts) == 12
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert drawn.boxes[:, 2:].unique().tolist() == [4]


def test_every_shorter_side_is_equally_likely_and_the_longer_in_proportion():
    drawn = RandomShortestSize([256, 265]).build().draw_windows(KEY, MANY, same(400, 300))
    counts = torch.bincount(drawn.sizes[:, 1] - 256, minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert torch.equal(drawn.sizes[:, 0], drawn.sizes[:, 1] * 400 // 300)
    assert RandomShortestSize(test_size=384).build().test_windows(sizes_of((768, 1000))).sizes.tolist() == [[384, 500]]


def test_windows_have_the_area_and_the_shape_that_is_asked_for():
    """In a large square all tries fit but those that stick out: then area and ratio are as drawn."""
    drawn = RandomResizedCrop(scale=[0.1, 0.5], ratio=[0.5, 2.0]).build().draw_windows(KEY, MANY, same(9000, 9000))
    height, width = drawn.boxes[:, 2].numpy(), drawn.boxes[:, 3].numpy()
    area, ratio = height * width / 9000**2, width / height
    # sqrt(0.5 * 2) = 1: no window is larger than the image, so none is drawn anew. Pixels are fine enough for a test.
    assert stats.kstest(area, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-3
    assert stats.kstest(np.log(ratio), stats.uniform(-np.log(2), 2 * np.log(2)).cdf).pvalue > 1e-3
    place = (drawn.boxes[:, 0].numpy() + 0.5) / (9000 - height + 1)
    assert stats.kstest(place, stats.uniform().cdf).pvalue > 1e-3


def test_the_mean_area_is_that_of_tries_in_python():
    """The published algorithm, one image after the other, with another generator."""
    rng = np.random.default_rng(0)

    def area(height: int, width: int) -> float:
        for _ in range(10):
            target = height * width * rng.uniform(0.08, 1)
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                return w * h / (height * width)
        return min(1.0, height * 4 / 3 / width)

    drawn = RandomResizedCrop().build().draw_windows(KEY, MANY, same(300, 700))
    mean = (drawn.boxes[:, 2] * drawn.boxes[:, 3]).mean().item() / (300 * 700)
    expected = np.array([area(300, 700) for _ in range(20_000)])
    assert abs(mean - expected.mean()) < 5 * expected.std() * (2 / 20_000) ** 0.5


@pytest.mark.parametrize(("size", "box"), [((100, 1000), [0, 433, 100, 133]), ((1000, 100), [433, 0, 133, 100])])
def test_what_fits_nowhere_is_the_largest_window_at_the_centre(size, box):
    # At least 60 % of an image ten times as wide as high is never 3/4 to 4/3 as wide as high; 100 * 4/3 rounds to 133.
    drawn = RandomResizedCrop(scale=[0.6, 1]).build().draw_windows(KEY, torch.arange(5), sizes_of(*[size] * 5))
    assert drawn.boxes.tolist() == [box] * 5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (RandomResizedCrop(scale=[1.0, 0.5]), r"scale=\[1.0, 0.5\]: give \[smallest, largest\]"),
        (RandomResizedCrop(scale=[0.5]), r"scale=\[0.5\]"),
        (RandomResizedCrop(ratio=[0.0, 2.0]), r"ratio=\[0.0, 2.0\].*at least"),
        (RandomResizedCrop(test_resize=200), r"test_resize=200.*at least 224"),
        (RandomShortestSize([480, 256]), r"sizes=\[480, 256\]"),
    ],
)
def test_ranges_that_are_none_are_refused_by_name(options, complaint):
    with pytest.raises(UsageError, match=rf"^augment\.random_\w+\.{complaint}"):
        options.build()
