"""lighting and gaussian_noise: published numbers, numpy's covariance, and the normal distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from engine import Key, Records, UsageError, uniform
from engine.interfaces import Source
from engine.plugins.augment import GaussianNoise, Lighting
from engine.plugins.augment.draws import normal
from engine.plugins.augment.noise import Seeds, uniform_on

KEY = Key.of(4).at("augment")
NONE = torch.zeros(1)


class Bank(Source):
    classes = ("a",)
    fingerprint = "bank"

    def __init__(self, images: torch.Tensor) -> None:
        self.images, self.shape = images, tuple(images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def records(self, indices):
        return Records("raw", self.images[torch.as_tensor(indices)], torch.zeros(len(indices), dtype=torch.int64))


def prepared(options: Lighting, source: Source):
    augmentation = options.build()
    augmentation.prepare(lambda: source)
    return augmentation


@pytest.mark.parametrize("channels", [1, 3])
def test_shifts_have_the_covariance_that_the_paper_gives_them(pictures, channels):
    """p sums a_i l_i p_i with a_i of standard deviation s: its covariance is s^2 C C, where C is the colours'."""
    images = pictures(30, channels)
    shifts = prepared(Lighting(std=2.0), Bank(images)).draw(KEY, torch.arange(100_000), (channels, 8, 8))
    colours = np.atleast_2d(np.cov(images.transpose(0, 1).flatten(1).numpy() / 255, bias=True))
    expected = 4 * colours @ colours
    found = np.atleast_2d(np.cov(shifts.double().numpy().T))
    assert np.abs(found - expected).max() < 0.02 * expected.max()
    assert np.abs(shifts.mean(0).numpy()).max() < 5 * (expected.max() / 100_000) ** 0.5


def test_a_source_that_knows_its_colours_is_not_read(pictures):
    known = Bank(pictures(3))
    known.colour = {"mean": [0, 0, 0], "covariance": np.diag([650.25, 6502.5, 65.025]).tolist()}
    known.records = None  # type: ignore[method-assign, assignment]
    axes = prepared(Lighting(), known).axes
    # Diagonal: each component is a channel, weighted by its variance of colours from 0 to 1.
    assert torch.allclose(axes.abs().sum(1), torch.tensor([0.01, 0.1, 0.001]).double())


def test_imagenets_components_are_orthogonal_and_of_the_published_size(pictures):
    augmentation = prepared(Lighting(components="imagenet"), Bank(pictures(1)))
    lengths = (augmentation.axes.T @ augmentation.axes).sqrt()
    assert torch.allclose(lengths.diagonal(), torch.tensor([0.2175, 0.0188, 0.0045]).double(), rtol=2e-4)
    shifts = augmentation.draw(KEY, torch.arange(50_000), (3, 8, 8)).double()
    # The first component is nearly gray, so it moves all channels alike: 0.1 x 0.2175 along it.
    along = shifts @ torch.tensor([-0.5675, -0.5808, -0.5836]).double()
    assert float(along.std()) == pytest.approx(0.02175, rel=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_shifts_are_added_to_every_pixel_without_clipping(pictures, passed, channels):
    images = pictures(2, channels)
    augmentation = prepared(Lighting(), Bank(images))
    shifts = torch.tensor([[0.9, -0.7, 0.1], [0.0, 0.3, -0.2]])[:, :channels]
    expected = images.double() / 255 + shifts[:, :, None, None]
    for result in (augmentation.apply(images, NONE, shifts)[0], passed(augmentation, images, shifts)):
        assert result.dtype == torch.float32
        assert float((result - expected).abs().max()) < 1e-6
    assert float(expected.max()) > 1


def test_images_that_have_no_such_components_are_refused():
    with pytest.raises(UsageError, match=r"^augment\.lighting\.components=imagenet.*gray; choose training"):
        prepared(Lighting(components="imagenet"), Bank(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)))
    with pytest.raises(UsageError, match=r"^augment\.lighting: images have 2 channels"):
        prepared(Lighting(), Bank(torch.zeros(2, 2, 4, 4, dtype=torch.uint8)))


def test_drawn_numbers_are_normal_and_independent():
    drawn = normal(KEY, torch.arange(30_000), 3).double().numpy()
    for column in drawn.T:
        assert stats.kstest(column, stats.norm.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.03


def test_noise_is_normal_in_every_pixel():
    images = torch.full((40, 3, 20, 21), 0.5, dtype=torch.float64)
    augmentation = GaussianNoise(mean=0.05, sigma=0.02, clip=False).build()
    result, _ = augmentation.apply(images, NONE, augmentation.draw(KEY, torch.arange(40), (3, 20, 21)))
    noise = (result - 0.55) / 0.02
    assert stats.kstest(noise.flatten().numpy(), stats.norm.cdf).pvalue > 1e-3
    flat = noise.flatten(1)
    assert float(flat[:, 1:].flatten() @ flat[:, :-1].flatten() / flat.numel()) < 0.02
    assert float((flat[1:] * flat[:-1]).mean().abs()) < 0.02


def test_noise_of_bytes_is_of_their_colours_from_0_to_1_and_clipped():
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(2000).view(1, 1, 40, 100)
    augmentation = GaussianNoise().build()
    result, _ = augmentation.apply(images, NONE, augmentation.draw(KEY, torch.arange(1), (1, 40, 100)))
    assert (float(result.min()), float(result.max())) == (0, 1)
    black = result[:, :, :, ::2]
    assert float((black > 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    # The mean of the positive half of a normal distribution, halved: 0.1 / sqrt(2 pi).
    assert float(black.mean()) == pytest.approx(0.1 * 0.39894, abs=0.005)


def test_devices_make_their_own_noise_from_the_same_numbers():
    samples = torch.tensor([0, 7, 2**33 + 5, 2**62])
    for key in (Key.of(0), KEY, Key(2**64 - 1)):
        assert torch.equal(uniform_on(key, samples, 37), uniform(key, samples, 37))
    noise = Seeds(KEY, samples).normal((3, 5, 5), torch.device("cpu"))
    assert torch.equal(Seeds(KEY, samples[2:3]).normal((3, 5, 5), torch.device("cpu"))[0], noise[2])
