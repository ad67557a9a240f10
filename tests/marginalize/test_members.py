"""Each built-in member against numpy, Pillow, torch or an expectation on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine import Batch, Key, UsageError
from engine.interfaces import LossFunction
from engine.marginalization import Views, combined
from engine.options import check
from engine.plugins.losses import MSE, CrossEntropy
from engine.plugins.marginalize import FiveCrop, Flip, MonteCarlo, MultiScale, TenCrop
from engine.randomness import seed_torch

CPU = torch.device("cpu")
KEY = Key.of(3)


def batch_of(images: torch.Tensor, first: int = 0) -> Batch:
    n = len(images)
    return Batch(images, torch.arange(n) % 3, torch.arange(first, first + n))


def outputs(model: nn.Module, batch: Batch, average: str = "softmax", **members) -> torch.Tensor:
    views = Views({name: options.build() for name, options in members.items()}, average, KEY, CPU)
    with torch.no_grad(), views.sampling(model.eval()):
        return views.outputs(model, batch)


def all_views(images: torch.Tensor, **members) -> list[torch.Tensor]:
    return [view for view, _ in combined([(name, options.build()) for name, options in members.items()], images)]


def softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def test_ten_crop_is_the_brute_force_average():
    rng = np.random.default_rng(0)
    images, crop = rng.normal(size=(6, 2, 9, 12)), 7
    weight, bias = rng.normal(size=(3, 2 * crop * crop)), rng.normal(size=3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * crop * crop, 3)).double()
    model[1].weight.data, model[1].bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    corners = [(0, 0), (0, 12 - crop), (9 - crop, 0), (9 - crop, 12 - crop), (1, 2)]  # the centre: (9 - 7) / 2, ...
    probabilities, scores = np.zeros((6, 3)), np.zeros((6, 3))
    for n in range(6):
        for top, left in corners:
            window = images[n, :, top : top + crop, left : left + crop]
            for view in (window, window[:, :, ::-1]):
                given = weight @ view.reshape(-1) + bias
                scores[n] += given / 10
                probabilities[n] += softmax(given) / 10
    batch = batch_of(torch.from_numpy(images))
    averaged = outputs(model, batch, ten_crop=TenCrop(crop=crop))
    np.testing.assert_allclose(averaged.exp().numpy(), probabilities, rtol=1e-12)
    np.testing.assert_allclose(
        outputs(model, batch, "outputs", ten_crop=TenCrop(crop=crop)).numpy(), scores, rtol=1e-11
    )
    # The loss is the negative log of the averaged probability.
    expected = -np.log(probabilities[np.arange(6), batch.targets.numpy()]).sum()
    assert float(CrossEntropy().build()(averaged, batch.targets)) == pytest.approx(expected, rel=1e-12)


def test_five_crop_and_flip_give_the_corners_of_numbered_pixels():
    images = torch.arange(24.0).view(1, 1, 4, 6)
    firsts = [float(view[0, 0, 0, 0]) for view in all_views(images, five_crop=FiveCrop(crop=2))]
    assert firsts == [0, 4, 12, 16, 8]
    assert [view.shape for view in all_views(images, five_crop=FiveCrop(crop=2))] == [(1, 1, 2, 2)] * 5
    plain, mirrored = all_views(images, flip=Flip())
    assert torch.equal(plain, images)
    assert mirrored[0, 0, 0].tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("image", "crop"), [((256, 256), (224, 224)), ((8, 16), (7, 14)), ((32, 30), (28, 26)), ((28, 1), (25, 1))]
)
def test_a_crop_is_seven_eighths_of_each_side(image, crop):
    assert {view.shape[2:] for view in all_views(torch.zeros(1, 1, *image), ten_crop=TenCrop())} == {crop}


def test_members_combine_as_a_product_in_their_order():
    images = torch.rand(2, 1, 8, 8)
    views = all_views(images, multi_scale=MultiScale(sizes=[8, 4]), five_crop=FiveCrop(), flip=Flip())
    assert [view.shape[2] for view in views] == [7] * 10 + [4] * 10
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        assert torch.equal(plain.flip(3), mirrored)
    ten = all_views(images, ten_crop=TenCrop())
    both = all_views(images, five_crop=FiveCrop(), flip=Flip())
    assert len(ten) == len(both) == 10
    assert all(torch.equal(a, b) for a, b in zip(ten, both, strict=True))


def test_a_symmetric_network_has_nothing_to_gain_from_flips():
    images = torch.rand(4, 3, 5, 5, dtype=torch.float64)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.testing.assert_close(outputs(model, batch_of(images), flip=Flip()), model(images).log_softmax(1))
    torch.testing.assert_close(outputs(model, batch_of(images), "outputs", flip=Flip()), model(images))


def fully_convolutional() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def test_multi_scale_applies_the_network_to_whole_resized_images():
    model, images = fully_convolutional(), torch.rand(3, 3, 20, 30, dtype=torch.float64)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for height, width in ((12, 18), (20, 30), (33, 49)):  # 33 x 30 / 20 = 49.5, rounded down as torchvision does
        resized = nn.functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
        expected += model(resized).softmax(1) / 3
    given = outputs(model, batch_of(images), multi_scale=MultiScale(sizes=[12, 20, 33]))
    torch.testing.assert_close(given.exp(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [5, 11, 24, 37])
def test_resizing_is_within_a_grey_level_of_pillow(size):
    pixels = np.random.default_rng(size).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    (view,) = all_views(images, multi_scale=MultiScale(sizes=[size]))
    pillow = np.asarray(Image.fromarray(pixels).resize((size * 32 // 24, size), Image.Resampling.BILINEAR))
    difference = view[0].permute(1, 2, 0).numpy() - pillow.astype(np.float32)
    assert np.abs(difference).max() <= 1


def test_half_precision_is_resized_in_float32():
    images = torch.rand(1, 1, 6, 6)
    (view,) = all_views(images.bfloat16(), multi_scale=MultiScale(sizes=[4]))
    (wide,) = all_views(images.bfloat16().float(), multi_scale=MultiScale(sizes=[4]))
    assert view.dtype == torch.bfloat16
    assert torch.equal(view, wide.bfloat16())


def test_images_are_never_edited_and_views_are_made_one_at_a_time():
    images = torch.rand(2, 1, 16, 16)
    before = images.clone()
    alive = []

    class Watching(nn.Module):
        def forward(self, x):
            alive.append(x.shape)
            return x.mean((2, 3)).expand(-1, 3)

    outputs(Watching(), batch_of(images), ten_crop=TenCrop(), multi_scale=MultiScale(sizes=[4, 9]), flip=Flip())
    assert len(alive) == 40
    assert {shape[0] for shape in alive} == {2}, "a pass is of one view, never of several at once"
    assert torch.equal(images, before)


class Dropping(nn.Module):
    """One linear layer behind dropout: its expectation is the layer itself."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(p), nn.Linear(12, 3)

    def forward(self, images):
        return self.linear(self.dropout(images.flatten(1)))


def test_monte_carlo_is_the_mean_over_the_same_seeds():
    model, images = Dropping().double(), torch.rand(5, 3, 2, 2, dtype=torch.float64)
    given = outputs(model, batch_of(images, first=10), mc=MonteCarlo(samples=7))
    expected = torch.zeros(5, 3, dtype=torch.float64)
    model.train()
    for view in range(7):
        seed_torch(KEY.at(10).at(view), CPU)
        expected += model(images).detach().softmax(1) / 7
    torch.testing.assert_close(given.exp(), expected, rtol=1e-12, atol=0)
    other = outputs(model, batch_of(images, first=15), mc=MonteCarlo(samples=7))
    assert not torch.allclose(given, other), "other images draw otherwise"


def test_monte_carlo_converges_to_the_expectation():
    torch.manual_seed(1)
    model, images = Dropping(p=0.3).double(), torch.rand(4, 3, 2, 2, dtype=torch.float64)
    model.eval()
    mean = model(images).detach()
    samples = 3000
    given = outputs(model, batch_of(images), "outputs", mc=MonteCarlo(samples=samples))
    # Var of sum_j w_j x_j m_j / (1 - p) is p / (1 - p) sum_j (w_j x_j)^2; five standard errors of the mean.
    variance = 0.3 / 0.7 * (images.flatten(1)[:, None] * model.linear.weight).square().sum(2)
    assert ((given - mean).abs() < 5 * (variance / samples).sqrt()).all()
    assert not torch.equal(given, mean)


def test_monte_carlo_switches_stochastic_layers_alone_and_puts_generators_back():
    modes = {}

    class Marked(nn.Module):
        stochastic = True

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.BatchNorm1d(12)

        def forward(self, x):
            modes["marked"], modes["inner"] = self.training, self.inner.training
            return x

    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), Marked(), nn.BatchNorm1d(12), nn.Dropout(0.0))
    statistics = model[3].running_mean.clone()
    model.train()
    before, state = [m.training for m in model.modules()], torch.get_rng_state()
    views = Views({"mc": MonteCarlo(samples=2).build()}, "outputs", KEY, CPU)
    model.eval()
    with views.sampling(model):
        modes |= {"dropout": model[1].training, "norm": model[3].training, "idle": model[4].training}
        views.outputs(model, batch_of(torch.rand(3, 3, 2, 2)))
    assert modes == {"marked": True, "inner": False, "dropout": True, "norm": False, "idle": False}
    assert torch.equal(model[3].running_mean, statistics)
    assert not any(m.training for m in model.modules())
    assert all(before)
    assert torch.equal(torch.get_rng_state(), state)


def test_several_heads_are_averaged_each():
    class TwoHeads(nn.Module):
        def forward(self, images):
            return images[:, 0, :, 0], images[:, 0, :, -1]

    images = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    main, other = outputs(TwoHeads(), batch_of(images), flip=Flip())
    expected = ((images[:, 0, :, 0].softmax(1) + images[:, 0, :, -1].softmax(1)) / 2).log()
    torch.testing.assert_close(main, expected)
    torch.testing.assert_close(other, expected)


def test_only_cross_entropy_averages_probabilities():
    assert CrossEntropy().build().softmax
    assert not MSE().build().softmax
    assert not LossFunction.softmax


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (MultiScale(sizes=[]), "marginalize.multi_scale.sizes is empty: give shorter sides"),
        (MultiScale(sizes=[8, 0]), "marginalize.multi_scale.sizes: 0 is no size"),
        (MultiScale(sizes=[8, 9, 8]), "marginalize.multi_scale.sizes: 8 is named twice"),
        (TenCrop(crop=9), "marginalize.ten_crop.crop=9: the images are 8x12: choose at most 8"),
        (FiveCrop(crop=90), "marginalize.five_crop.crop=90: the images are 8x12: choose at most 8"),
        (MonteCarlo(), "marginalize.mc: the model has no layer that draws"),
    ],
)
def test_what_cannot_be_is_answered_in_one_line(options, line):
    with pytest.raises(UsageError) as caught:
        outputs(nn.Dropout(0.0), batch_of(torch.zeros(1, 1, 8, 12)), member=options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [MonteCarlo(samples=0), TenCrop(crop=0)])
def test_bounds_are_checked(options):
    with pytest.raises(UsageError, match="must be at least 1"):
        check(options)


def test_a_member_without_views_is_named():
    class Silent:
        def views(self, images):
            return []

    with pytest.raises(UsageError, match=r"marginalize\.silent: it gives no view"):
        list(combined([("silent", Silent())], torch.zeros(1, 1, 2, 2)))


def test_a_probability_that_underflows_keeps_a_finite_loss():
    scores = torch.tensor([[0.0, 500.0, 0.0]])

    class Sure(nn.Module):
        def forward(self, images):
            return scores

    averaged = outputs(Sure(), batch_of(torch.zeros(1, 1, 2, 2)), flip=Flip())
    assert float(CrossEntropy().build()(averaged, torch.tensor([0]))) == pytest.approx(500.0)
    assert math.isfinite(float(averaged.min()))
