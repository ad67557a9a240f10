"""Thresholds against the float arithmetic they stand for, at every integer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.binary.thresholds import find_thresholds
from engine.ops.binary import Thresholds, threshold, unpack_signs

SPAN = 300


def by_thresholds(signs, filters: int) -> torch.Tensor:
    most = torch.full((filters,), SPAN)
    least, inverted = find_thresholds(signs, -most, most)
    sums = torch.arange(-SPAN, SPAN + 1, dtype=torch.int32)[:, None].repeat(1, filters)
    return unpack_signs(threshold(sums, Thresholds.of(least, inverted)), filters) > 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 1e3, 1e20]))
def test_they_give_the_sign_of_batch_norm_for_every_sum(seed, scale):
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(37).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(37) * scale)
        norm.weight[::6] = 0
        norm.bias.copy_(torch.randn(37))
        norm.bias[:2] = 0
        norm.running_mean.copy_(torch.randn(37) * 50)
        norm.running_mean[::4] = norm.running_mean[::4].round()  # the sign changes at a whole number, or is that of 0
        norm.bias[::4] = 0
        norm.running_var.copy_(torch.rand(37) * 100)
        sums = torch.arange(-SPAN, SPAN + 1)[:, None].repeat(1, 37)
        expected = norm(sums.float()) >= 0
        found = by_thresholds(lambda values: (norm(values[None].float()) >= 0)[0], 37)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shift", [-301, -300, -299, 0, 299, 300, 301])
@pytest.mark.parametrize("factor", [1, -1])
def test_ends_and_constants(shift, factor):
    sums = torch.arange(-SPAN, SPAN + 1)
    found = by_thresholds(lambda values: values * factor >= shift, 1)
    assert torch.equal(found[:, 0], sums * factor >= shift)
