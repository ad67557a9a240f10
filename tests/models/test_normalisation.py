"""Normalisation within channels beside its definition in float64; the constants across channels."""

from __future__ import annotations

import pytest
import torch

from engine.normalization import WithinChannelNorm
from engine.plugins.models import AlexNet, GoogLeNet, ZFNet


def test_within_a_channel_it_divides_by_the_neighbourhoods_power():
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 3, 5, 4, dtype=torch.float64)
    expected = torch.empty_like(x)
    for row in range(5):
        for column in range(4):
            square = x[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].square().sum((2, 3))
            expected[:, :, row, column] = x[:, :, row, column] / (1 + 0.2 * square / 9) ** 0.75
    torch.testing.assert_close(WithinChannelNorm(3, 0.2, 0.75)(x), expected)


def test_an_even_neighbourhood_is_refused():
    with pytest.raises(ValueError, match="size is 4"):
        WithinChannelNorm(4)


@pytest.mark.parametrize(("lrn", "constants"), [("caffe", (5, 1e-4, 0.75, 1)), ("paper", (5, 5e-4, 0.75, 2))])
def test_alexnets_constants_are_caffes_or_the_papers(lrn, constants):
    """The paper's alpha of 1e-4 multiplies the sum over 5 channels, Caffe's the mean."""
    with torch.device("meta"):
        model = AlexNet(lrn=lrn).build((3, 67, 67), 10)
    norms = [(m.size, m.alpha, m.beta, m.k) for m in model.modules() if hasattr(m, "beta")]
    assert norms == [constants, constants]


@pytest.mark.parametrize("options", [AlexNet, ZFNet, GoogLeNet])
def test_the_kernel_that_keeps_little_is_the_default(options):
    for settings, expected in (({}, True), ({"fused_lrn": False}, False)):
        with torch.device("meta"):
            model = options(**settings).build((3, 67, 67), 10)
        assert [m.fused for m in model.modules() if hasattr(m, "beta")] == [expected, expected]
