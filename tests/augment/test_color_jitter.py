"""color_jitter against Pillow's enhancements and colorsys in float64, and its draws."""

from __future__ import annotations

import colorsys
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import ImageEnhance
from scipy import stats

from engine import Key, UsageError
from engine.plan import BRIGHTNESS, CONTRAST, HUE, SATURATION
from engine.plugins.augment import ColorJitter
from engine.plugins.augment.color_jitter import Changes

KEY = Key.of(2).at("augment")
NONE = torch.zeros(1)
LUMA = np.array([0.2989, 0.587, 0.114])
KINDS = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE}


def changes(*pairs: tuple[str, float], count: int = 1) -> Changes:
    kinds = torch.tensor([[KINDS[name] for name, _ in pairs]] * count, dtype=torch.int32)
    return Changes(kinds, torch.tensor([[factor for _, factor in pairs]] * count))


def one_by_one(image: np.ndarray, pairs: list[tuple[str, float]], clip: bool) -> np.ndarray:
    """Return float64 [c, h, w] after changes, pixel by pixel where a hue is turned."""

    def gray(x: np.ndarray) -> np.ndarray:
        return np.tensordot(LUMA, x, 1)[None] if len(x) == 3 else x

    for name, factor in pairs:
        if name == "hue":
            if len(image) == 3:
                image = image.clip(0, 1)
                for place in np.ndindex(image.shape[1:]):
                    hue, saturation, value = colorsys.rgb_to_hsv(*image[(slice(None), *place)])
                    image[(slice(None), *place)] = colorsys.hsv_to_rgb((hue + factor) % 1, saturation, value)
            continue
        other = {"brightness": 0 * image, "contrast": gray(image).mean(), "saturation": gray(image)}[name]
        image = factor * image + (1 - factor) * other
        image = image.clip(0, 1) if clip else image
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("clip", [True, False])
def test_every_order_of_changes_is_that_of_float64(pictures, passed, channels, clip):
    augmentation = ColorJitter([0.5], [0.5], [0.5], [0.2], clip).build()
    factors = {"brightness": 1.9, "contrast": 0.4, "saturation": 1.9, "hue": -0.2}
    images, beyond = pictures(1, channels, 9, 11), 0.0
    for order in permutations(factors):
        pairs = [(name, factors[name]) for name in order]
        expected = one_by_one(images[0].double().numpy() / 255, pairs, clip)
        drawn = changes(*pairs)
        assert np.abs(augmentation.apply(images, NONE, drawn)[0][0].numpy() - expected).max() < 2e-5
        assert np.abs(augmentation.apply(images / 255, NONE, drawn)[0][0].numpy() - expected).max() < 2e-5
        assert np.abs(passed(augmentation, images, drawn)[0].numpy() - expected).max() < 2e-5
        beyond = max(beyond, expected.max())
    assert (beyond > 1) == (not clip), "without clipping some are beyond white, or it was not tested"


@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.7])
def test_a_change_is_pillows(pictures, pil, of_pil, name, enhance, factor):
    images = pictures(1)
    result, _ = ColorJitter().build().apply(images, NONE, changes((name, factor)))
    clipped = ColorJitter(clip=True).build().apply(images, NONE, changes((name, factor)))[0]
    expected = of_pil(enhance(pil(images[0])).enhance(factor))
    # Pillow rounds its gray to a whole level, and weighs colours with other last digits.
    assert np.abs(result[0].numpy() * 255 - expected).max() <= 1.6 + abs(1 - factor)
    assert torch.equal(result, clipped)


def test_factors_are_uniform_and_every_order_equally_likely():
    augmentation = ColorJitter([0.4], [0.2, 0.5], [2.0], [0.1]).build()
    drawn = augmentation.draw(KEY, torch.arange(12_000), (3, 8, 8))
    limits = {BRIGHTNESS: (0.6, 1.4), CONTRAST: (0.2, 0.5), SATURATION: (0.0, 3.0), HUE: (-0.1, 0.1)}
    for kind, (low, high) in limits.items():
        factors = drawn.factors[drawn.kinds == kind].double().numpy()
        assert len(factors) == 12_000
        assert stats.kstest(factors, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    orders = (drawn.kinds * torch.tensor([1000, 100, 10, 1])).sum(1).unique(return_counts=True)[1]
    assert len(orders) == 24
    assert stats.chisquare(orders.numpy()).pvalue > 1e-3


def test_what_is_not_asked_for_is_not_drawn():
    drawn = ColorJitter(hue=[0.5]).build().draw(KEY, torch.arange(5), (3, 8, 8))
    assert drawn.kinds.tolist() == [[HUE]] * 5
    assert ColorJitter().build().draw(KEY, torch.arange(5), (3, 8, 8)).kinds.shape == (5, 0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (ColorJitter(brightness=[-0.1]), r"brightness=\[-0.1\]"),
        (ColorJitter(contrast=[1.5, 0.5]), r"contrast=\[1.5, 0.5\]"),
        (ColorJitter(saturation=[-1, 2]), r"saturation=\[-1, 2\].*at least 0"),
        (ColorJitter(hue=[0.6]), r"hue=.*from -0.5 to 0.5"),
        (ColorJitter(hue=[0.1, 0.2, 0.3]), r"hue=\[0.1, 0.2, 0.3\]"),
    ],
)
def test_what_is_no_range_is_refused_by_name(options, complaint):
    with pytest.raises(UsageError, match=rf"^augment\.color_jitter\.{complaint}"):
        options.build()


def test_images_of_other_channels_are_refused():
    with pytest.raises(UsageError, match=r"^augment\.color_jitter: images have 4 channels"):
        ColorJitter([0.4]).build().draw(KEY, torch.arange(2), (4, 8, 8))
