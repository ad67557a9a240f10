"""DropConnect and stochastic depth against what can be computed on paper."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine.layers import DropConnectConv2d, DropConnectLinear, StochasticDepth, drawing, stochastic_layers
from engine.options import check
from engine.plugins.kernels import Winograd
from engine.plugins.models import ResNet20, SmallCNN

SAMPLES = 4000


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def sampled(layer: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return [SAMPLES, ...]: outputs in training mode."""
    layer.train()
    with torch.no_grad():
        return torch.stack([layer(images) for _ in range(SAMPLES)])


def assert_moments(samples: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Compare with expectation and variance, within five standard errors."""
    assert ((samples.mean(0) - mean).abs() < 5 * (variance / SAMPLES).sqrt() + 1e-12).all()
    # A sum of several independent terms has a kurtosis near 3 (at most 6 here): Var(s^2) < 5 variance^2 / n.
    assert ((samples.var(0) - variance).abs() < 5 * variance * (5 / SAMPLES) ** 0.5 + 1e-12).all()


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_drop_connect_has_the_layers_mean_and_the_masks_variance(p):
    layer = DropConnectLinear(20, 3, p=p).double()
    images = torch.randn(2, 20, dtype=torch.float64)
    plain = nn.functional.linear(images, layer.weight, layer.bias).detach()
    terms = (images[:, None] * layer.weight.detach()).square()
    assert_moments(sampled(layer, images), plain, p / (1 - p) * terms.sum(2))
    assert torch.equal(layer.eval()(images), plain), "an evaluation computes with the mean of the weights"


def test_drop_connect_of_a_convolution_likewise():
    layer = DropConnectConv2d(3, 2, 3, p=0.4, padding=1).double()
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    plain = nn.functional.conv2d(images, layer.weight, layer.bias, padding=1).detach()
    variance = 0.4 / 0.6 * nn.functional.conv2d(images.square(), layer.weight.detach().square(), padding=1)
    assert_moments(sampled(layer, images), plain, variance)
    assert torch.equal(layer.eval()(images), plain)


@pytest.mark.parametrize(
    ("layer", "shape"), [(DropConnectLinear(5, 3, p=0.5), (4, 5)), (DropConnectConv2d(2, 3, 3, p=0.5), (2, 2, 5, 4))]
)
def test_drop_connect_has_exact_gradients(layer, shape):
    layer = layer.double().train()
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(images, *parameters):
        torch.manual_seed(7)  # the same mask every time
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (images,))

    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (images, *values))
    torch.manual_seed(7)
    layer(images).square().sum().backward()
    assert 0 < int((layer.weight.grad == 0).sum()) < layer.weight.numel(), "a dropped weight learns nothing"


def test_drop_connect_obeys_torchs_generator_and_keeps_parameter_names():
    layer, images = DropConnectLinear(30, 4), torch.randn(3, 30)
    torch.manual_seed(5)
    first = layer(images)
    assert not torch.equal(layer(images), first)
    torch.manual_seed(5)
    assert torch.equal(layer(images), first)
    assert list(layer.state_dict()) == list(nn.Linear(30, 4).state_dict())
    assert list(DropConnectConv2d(1, 1, 3).state_dict()) == list(nn.Conv2d(1, 1, 3).state_dict())


def test_kernels_leave_a_drop_connect_convolution_to_torch():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), DropConnectConv2d(8, 8, 3))
    rows = Winograd().build().apply(model, (2, 3, 12, 12))
    assert [row.kernel.partition(" ")[0] for row in rows] == ["winograd4", "native"]
    assert "DropConnectConv2d computes in its own way" in rows[1].reason


@pytest.mark.parametrize("survival", [0.3, 0.8])
def test_stochastic_depth_keeps_an_images_branch_or_drops_it_whole(survival):
    layer = StochasticDepth(survival)
    branch = torch.rand(3, 2, 4, 4, dtype=torch.float64) + 0.1
    samples = sampled(layer, branch)
    whole, dropped = (samples == branch).flatten(2).all(2), (samples == 0).flatten(2).all(2)
    assert (whole | dropped).all()
    assert not (whole.float().mean(1) % 1 == 0).all(), "images are drawn apart"
    share = whole.double().mean(0)
    assert ((share - survival).abs() < 5 * (survival * (1 - survival) / SAMPLES) ** 0.5).all()
    assert torch.equal(layer.eval()(branch), survival * branch), "the expectation (equation 5 of the paper)"


def test_stochastic_depth_that_always_survives_draws_nothing():
    branch, state = torch.rand(2, 3), torch.get_rng_state()
    assert torch.equal(StochasticDepth(1.0).train()(branch), branch)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [-0.1, 1.0])
def test_layers_refuse_probabilities_that_are_none(bad):
    with pytest.raises(ValueError, match="p is"):
        DropConnectLinear(2, 2, p=bad)
    with pytest.raises(ValueError, match="survival is"):
        StochasticDepth(1.0 - bad if bad == 1.0 else bad)


def test_stochastic_layers_are_those_that_can_draw():
    model = nn.Sequential(
        nn.Dropout(0.5), nn.Dropout(0.0), nn.AlphaDropout(0.1), DropConnectLinear(2, 2), DropConnectLinear(2, 2, p=0.0),
        StochasticDepth(0.5), StochasticDepth(1.0), nn.BatchNorm1d(2), nn.Dropout2d(0.2),
    )  # fmt: skip
    assert stochastic_layers(model) == [model[i] for i in (0, 2, 3, 5, 8)]
    model.eval()
    with drawing(model):
        assert [module.training for module in model] == [i in (0, 2, 3, 5, 8) for i in range(9)]
    assert not any(module.training for module in model.modules())


def test_the_small_network_takes_drop_connect():
    model = SmallCNN(width=4, drop_connect=0.5).build((1, 8, 8), 10)
    assert [type(layer) for layer in stochastic_layers(model)] == [DropConnectLinear]
    assert model.linear.p == 0.5
    assert type(SmallCNN(width=4).build((1, 8, 8), 10).linear) is nn.Linear


def test_the_residual_network_decays_survival_linearly():
    model = ResNet20(survival=0.8).build((3, 32, 32), 10)
    kept = [module.survival for module in model.modules() if isinstance(module, StochasticDepth)]
    assert kept == pytest.approx([1 - 0.2 * block / 9 for block in range(1, 10)])
    assert kept[-1] == pytest.approx(0.8)
    assert list(model.state_dict()) == list(ResNet20().build((3, 32, 32), 10).state_dict())
    assert not stochastic_layers(ResNet20().build((3, 32, 32), 10))


def test_a_block_whose_branch_is_dropped_is_its_shortcut():
    block = ResNet20(depth=8, survival=0.5).build((3, 8, 8), 10).layer1[0]
    images = torch.rand(64, 16, 8, 8)
    block.bn1.eval(), block.bn2.eval()
    whole = copy.deepcopy(block)
    whole.depth = None
    with torch.no_grad():
        given, expected = block(images), whole(images)
    dropped = (given == images).flatten(1).all(1)
    assert torch.equal(given[~dropped], expected[~dropped])
    assert 0 < int(dropped.sum()) < 64


@pytest.mark.parametrize("options", [SmallCNN(drop_connect=1.0), ResNet20(survival=0.0), ResNet20(survival=1.1)])
def test_options_are_bounded(options):
    with pytest.raises(Exception, match=r"must be (below 1|above 0|at most 1)"):
        check(options)
