"""affine against Pillow's transform, scipy's rotation, and matrices that are multiplied out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from engine import Key, UsageError
from engine.plugins.augment import Affine
from engine.plugins.augment.affine import Maps, inverse_matrices, transform

KEY = Key.of(9).at("augment")


def maps(count: int, seed: int = 0) -> Maps:
    rng = np.random.default_rng(seed)

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.tensor(rng.uniform(low, high, (count, *shape)))

    return Maps(draw(-180, 180), draw(-6, 6, 2).round(), draw(0.6, 1.5), draw(-30, 30, 2), draw(0.5, 2.0))


def product(drawn: Maps, row: int, height: int, width: int) -> np.ndarray:
    """Return the 3x3 matrix of shift, centre, turn, scale, both shears, stretch, centre: from images to results."""

    def matrix(*rows: tuple[float, float, float]) -> np.ndarray:
        return np.array([*rows, (0, 0, 1)], dtype=np.float64)

    turn, scale = math.radians(drawn.angle[row]), float(drawn.scale[row])
    right, down = drawn.translate[row].tolist()
    along_x, along_y = (math.tan(math.radians(angle)) for angle in drawn.shear[row].tolist())
    wide = math.sqrt(float(drawn.stretch[row]))
    return (
        matrix((1, 0, right + width / 2), (0, 1, down + height / 2))
        @ matrix((math.cos(turn), -math.sin(turn), 0), (math.sin(turn), math.cos(turn), 0))
        @ matrix((scale, 0, 0), (0, scale, 0))
        @ matrix((1, 0, 0), (-along_y, 1, 0))
        @ matrix((1, -along_x, 0), (0, 1, 0))
        @ matrix((wide, 0, 0), (0, 1 / wide, 0))
        @ matrix((1, 0, -width / 2), (0, 1, -height / 2))
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_mapped_images_are_pillows(pictures, pil, of_pil, channels, dtype):
    images, drawn = pictures(12, channels), maps(12)
    given = images if dtype == torch.uint8 else images.to(dtype) / 255
    results = transform(given, inverse_matrices(drawn))
    assert results.dtype == dtype
    compared = 0
    for row, (image, result) in enumerate(zip(images, results, strict=True)):
        back = np.linalg.inv(product(drawn, row, 40, 52))
        expected = of_pil(pil(image).transform((52, 40), Image.Transform.AFFINE, back[:2].flatten(), Image.BILINEAR))
        # Within half a pixel of the border Pillow repeats it, where torchvision fades to black.
        x, y = np.meshgrid(np.arange(52) + 0.5, np.arange(40) + 0.5)
        x, y, _ = np.einsum("ij,jhw->ihw", back, np.stack([x, y, np.ones_like(x)]))
        inner = (x > 0.51) & (x < 51.49) & (y > 0.51) & (y < 39.49)
        outer = (x < -0.51) | (x > 52.51) | (y < -0.51) | (y > 40.51)
        found = result.double().numpy() * (1 if dtype == torch.uint8 else 255)
        assert np.abs(found - expected)[:, inner].max() <= 1.01  # Pillow rounds down
        assert (found[:, outer] == 0).all()
        compared += int(inner.sum())
    assert compared > 5000


def test_a_turn_is_scipys(pictures):
    images = pictures(1, height=41, width=41)
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    result = transform(images.double(), inverse_matrices(Maps(one * 30, none, one, none, one)))
    expected = ndimage.rotate(images[0].numpy().astype(float), -30, axes=(1, 2), reshape=False, order=1)
    y, x = np.mgrid[-20:21, -20:21]
    within = x**2 + y**2 < 19**2
    np.testing.assert_allclose(result[0].numpy()[:, within], expected[:, within], atol=1e-3)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_whole_shifts_and_quarter_turns_are_exact(pictures, mode):
    images = pictures(2, height=9, width=9)
    one, none = torch.ones(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    turned = transform(images, inverse_matrices(Maps(one * 90, none, one, none, one)), mode)
    assert torch.equal(turned, images.rot90(-1, (2, 3)))  # clockwise
    shifted = transform(images, inverse_matrices(Maps(one * 0, none + torch.tensor([2, -1]), one, none, one)), mode)
    assert torch.equal(shifted[:, :, :8, 2:], images[:, :, 1:, :7])
    assert int(shifted[:, :, 8].sum()) == int(shifted[:, :, :, :2].sum()) == 0


def test_what_is_drawn_is_uniform_in_its_range():
    augmentation = Affine(
        [-10.0, 30.0], translate=[0.5, 0.1], scale=[0.5, 2.0], shear=[-1.0, 3.0, 4.0, 5.0], stretch=[4.0]
    ).build()
    drawn = augmentation.draw(KEY, torch.arange(4000), (3, 11, 20))
    for values, low, high in (
        (drawn.angle, -10, 30),
        (drawn.scale, 0.5, 2),
        (drawn.shear[:, 0], -1, 3),
        (drawn.shear[:, 1], 4, 5),
        (drawn.stretch.log(), -math.log(4), math.log(4)),
    ):
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3
    # Up to half of 20 pixels, and a tenth of 11, rounded: whole numbers, the outermost half as likely.
    right = torch.bincount(drawn.translate[:, 0].long() + 10).double()
    assert stats.chisquare(right.numpy(), 4000 * np.array([0.5, *[1] * 19, 0.5]) / 20).pvalue > 1e-3
    assert drawn.translate[:, 1].unique().tolist() == [-1, 0, 1]


def test_by_default_it_only_turns():
    drawn = Affine([10.0]).build().draw(KEY, torch.arange(50), (3, 8, 8))
    assert float(drawn.angle.abs().max()) <= 10
    assert [drawn.translate.unique().tolist(), drawn.scale.unique().tolist(), drawn.stretch.unique().tolist()] == [
        [0], [1], [1],
    ]  # fmt: skip
    assert drawn.shear.unique().tolist() == [0]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (Affine(degrees=[-5.0]), r"degrees=\[-5.0\]: a single number is a distance"),
        (Affine(translate=[0.1]), r"translate=\[0.1\]: give \[right, down\]"),
        (Affine(translate=[0.1, 1.5]), r"translate=\[0.1, 1.5\]"),
        (Affine(scale=[2.0, 1.0]), r"scale=\[2.0, 1.0\]"),
        (Affine(shear=[1.0, 2.0, 3.0]), r"shear=\[1.0, 2.0, 3.0\]"),
        (Affine(shear=[90.0]), r"shear="),
        (Affine(stretch=[0.5]), r"stretch=\[0.5\]"),
    ],
)
def test_what_is_no_range_is_refused_by_name(options, complaint):
    with pytest.raises(UsageError, match=rf"^augment\.affine\.{complaint}"):
        options.build()
