"""mixup and cutmix: numpy's arithmetic, scipy's Beta distribution, and labels that add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from engine import Key
from engine.plugins.augment import CutMix, Mixup
from engine.plugins.augment.mixing import Mixture
from engine.testing.small import SmallData

KEY = Key.of(8).at("augment")
SAMPLES = torch.arange(5000, 25_000)


def built(options: Mixup | CutMix, classes: int = 3):
    augmentation = options.build()
    augmentation.prepare(lambda: SmallData().build("train"))
    assert augmentation.classes == classes
    return augmentation


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha):
    shares = Mixup(alpha).build().draw(KEY, SAMPLES, (3, 8, 8)).shares
    assert stats.kstest(shares.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert ((shares >= 0) & (shares <= 1)).all()


@pytest.mark.parametrize("group", [2, 5])
@pytest.mark.parametrize("options", [Mixup, CutMix])
def test_partners_are_the_others_of_a_group_equally_likely(options, group):
    drawn = options(group_size=group).build().draw(KEY, SAMPLES, (3, 8, 8))
    rows = torch.arange(len(SAMPLES))
    assert torch.equal(drawn.partners // group, rows // group)
    assert torch.equal(drawn.partners.sort().values, rows), "every image is somebody's partner, once"
    distances = torch.bincount((drawn.partners - rows) % group, minlength=group)
    assert distances[0] == 0
    assert stats.chisquare(distances[1:].numpy() / group).pvalue > 1e-4 or group == 2


@pytest.mark.parametrize("options", [Mixup, CutMix])
def test_some_images_are_left_alone_if_that_is_asked_for(options):
    drawn = options(probability=0.3).build().draw(KEY, SAMPLES, (3, 64, 64))
    mixed = float((drawn.shares < 1).double().mean())
    # A box can be empty, where the share drawn is close to 1: at most when its half side is below a pixel of 64.
    spread = 5 * (0.21 / len(SAMPLES)) ** 0.5
    assert 0.3 - spread - 0.3 * (1 / 32) ** 2 <= mixed <= 0.3 + spread


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_images_and_labels_are_blended_in_proportion(pictures, dtype):
    images = pictures(4) if dtype == torch.uint8 else pictures(4).to(dtype) / 255
    targets = torch.tensor([0, 2, 1, 1])
    mixture = Mixture(torch.tensor([1, 0, 3, 2]), torch.tensor([0.75, 0.2, 1.0, 0.5], dtype=torch.float64))
    result, labels = built(Mixup()).apply(images, targets, mixture)
    own = pictures(4).double().numpy() / 255
    share = mixture.shares.numpy()[:, None, None, None]
    np.testing.assert_allclose(result.numpy(), share * own + (1 - share) * own[[1, 0, 3, 2]], atol=1e-6)
    assert result.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    expected = torch.tensor([[0.75, 0, 0.25], [0.8, 0, 0.2], [0, 1, 0], [0, 1, 0]])
    assert torch.allclose(labels, expected)
    soft = torch.tensor([[0.5, 0.5, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    _, labels = built(Mixup()).apply(images, soft, mixture)
    assert torch.allclose(labels, torch.tensor([[0.375, 0.375, 0.25], [0.4, 0.4, 0.2], [1, 0, 0], [0.5, 0.5, 0]]))


def test_boxes_are_pasted_and_labels_follow_their_area(pictures):
    augmentation = built(CutMix())
    images, targets = pictures(40, height=13, width=10), torch.arange(40) % 3
    drawn = augmentation.draw(KEY, torch.arange(40), (3, 13, 10))
    result, labels = augmentation.apply(images, targets, drawn)
    assert result.dtype == torch.uint8
    pasted = 0
    for row, (top, left, bottom, right) in enumerate(drawn.boxes.tolist()):
        expected = images[row].clone()
        expected[:, top:bottom, left:right] = images[drawn.partners[row], :, top:bottom, left:right]
        assert torch.equal(result[row], expected)
        part = (bottom - top) * (right - left) / 130
        wanted = np.zeros(3)
        wanted[targets[row]] += 1 - part
        wanted[targets[drawn.partners[row]]] += part
        np.testing.assert_allclose(labels[row].numpy(), wanted, atol=1e-6)
        pasted += part > 0
    assert pasted > 30


def test_boxes_have_the_area_and_the_places_of_the_paper():
    """Half sides of sqrt(1 - share) / 2 of the image's, about any pixel: Yun et al. 2019, section 3.1."""
    drawn = CutMix(alpha=1.0).build().draw(KEY, SAMPLES, (3, 1000, 500))
    top, left, bottom, right = drawn.boxes.T.numpy()
    inside = (top > 0) & (bottom < 1000) & (left > 0) & (right < 500)
    height, width = (bottom - top)[inside], (right - left)[inside]
    assert np.abs(height / 2 - width).max() <= 2, "of the image's shape, to a pixel on either side"
    # Over all centres and shares, uniform with alpha = 1, the part that is covered has this mean: with s the side by
    # the image's, the mean overlap of an axis is s - s^2/4, and s^2 is uniform.
    side = np.sqrt((np.arange(10_000) + 0.5) / 10_000)
    assert float(1 - drawn.shares.mean()) == pytest.approx(((side - side**2 / 4) ** 2).mean(), abs=0.01)
