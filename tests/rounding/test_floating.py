"""bfloat16 and half precision against torch's own casts, over all 65,536 patterns and between them; sums of updates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import UsageError
from engine.ops.rounding import add_bfloat16, round_bfloat16, round_float16

PATTERNS = torch.arange(65536, dtype=torch.int32)
LARGEST = torch.finfo(torch.bfloat16).max


def patterns(dtype: torch.dtype) -> Tensor:
    """Return every number of a type of 16 bits."""
    return PATTERNS.to(torch.int16).view(dtype)


def between(dtype: torch.dtype) -> Tensor:
    """Return float32 numbers around every one of a type: it, its midpoint to the next, and one bit beside each."""
    numbers = patterns(dtype).float()
    numbers = numbers[numbers.isfinite()].sort().values
    middle = ((numbers[1:].double() + numbers[:-1].double()) / 2).float()
    both = torch.cat([numbers, middle])
    infinity = torch.tensor(float("inf"))
    return torch.cat(
        [both, torch.nextafter(both, infinity), torch.nextafter(both, -infinity), torch.tensor([3.39e38, 1e-45])]
    )


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)


def counted(x: Tensor, rounded: Tensor, largest: float) -> list[int]:
    """Return what is counted where beyond the largest number is infinity."""
    values, after = x.double().numpy(), rounded.double().numpy()
    return [
        len(values), int(np.isinf(after).sum()), int((np.abs(values) > largest / 2).sum()),
        int(((after == 0) & (values != 0)).sum()), int((~np.isfinite(values)).sum()),
    ]  # fmt: skip


def test_every_number_of_bfloat16_stays_and_nan_is_nan() -> None:
    numbers = patterns(torch.bfloat16)
    real = ~numbers.isnan()
    for key in range(16):
        for mode in ("nearest", "stochastic"):
            rounded = round_bfloat16(numbers.float(), mode=mode, key=key)
            assert torch.equal(bits(rounded)[real], bits(numbers)[real])
            assert rounded[~real].isnan().all()


def test_every_number_of_half_precision_stays_and_nan_is_nan() -> None:
    numbers = patterns(torch.float16).float()
    rounded = round_float16(numbers)
    real = ~numbers.isnan()
    assert torch.equal(bits(rounded)[real], bits(numbers)[real])
    assert rounded[~real].isnan().all()


def test_nearest_is_torchs_own_cast() -> None:
    x, counts = between(torch.bfloat16), torch.zeros(5, dtype=torch.int64)
    rounded = round_bfloat16(x, counts=counts)
    assert torch.equal(bits(rounded), bits(x.bfloat16()))
    assert counts.tolist() == counted(x, x.bfloat16(), LARGEST)
    x = torch.cat([between(torch.float16), between(torch.bfloat16)])
    counts.zero_()
    rounded = round_float16(x, counts=counts)
    assert torch.equal(bits(rounded), bits(x.half().float()))
    assert counts.tolist() == counted(x, x.half(), 65504.0)


def test_stochastic_takes_one_of_two_neighbours_and_never_infinity() -> None:
    x = between(torch.bfloat16)
    counts = torch.zeros(5, dtype=torch.int64)
    rounded = round_bfloat16(x, mode="stochastic", key=1, counts=counts)
    low = (x.view(torch.int32) >> 16).to(torch.int16)
    assert torch.isin((bits(rounded).int() - low.int()), torch.tensor([0, 1])).all()
    assert rounded.isfinite().all()
    assert rounded.signbit().equal(x.signbit())
    assert counts[0] == len(x)
    assert counts[1] == int((x.abs().double() > LARGEST).sum())
    infinite = torch.tensor([float("inf"), -float("inf")])
    assert torch.equal(round_bfloat16(infinite, mode="stochastic").float(), infinite)


def test_ten_thousand_small_updates_arrive() -> None:
    updates, size, many = 10_000, 2.0**-12, 400
    update = torch.full((many,), size)
    nearest, stochastic, kahan = (torch.ones(many, dtype=torch.bfloat16) for _ in range(3))
    rest = torch.zeros_like(kahan)
    for step in range(updates):
        nearest = (nearest.float() + update).bfloat16()
        add_bfloat16(stochastic, update, key=9, step=step)
        add_bfloat16(kahan, update, mode="kahan", compensation=rest)
    expected = 1 + updates * size
    assert (nearest == 1).all(), "the sum would move without help, and this test shows nothing"
    # Between 2^k and 2^(k+1) the spacing is 2^(k-7): each update has the variance size * (spacing - size).
    variance = sum(count * size * (2.0 ** (k - 7) - size) for k, count in ((0, 4096), (1, updates - 4096)))
    mean = stochastic.double().mean()
    assert abs(mean - expected) < 3 * (variance / many) ** 0.5
    assert abs(stochastic.double().std() / variance**0.5 - 1) < 0.15
    assert ((kahan.double() - expected).abs() <= 2.0**-6).all()  # the spacing at 3.44


def test_a_sum_is_that_of_float32_and_updates_that_vanish_are_counted() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5000, generator=generator).bfloat16()
    update = torch.randn(5000, generator=generator) * 2.0 ** torch.randint(-14, 2, (5000,), generator=generator)
    update[:7] = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 3.4e38, 1e-45])
    counts, before = torch.zeros(5, dtype=torch.int64), weight.clone()
    assert add_bfloat16(weight, update, key=5, step=8, offset=3, counts=counts) is weight
    expected = round_bfloat16(before.float() + update, mode="stochastic", key=5, step=8, offset=3)
    assert torch.equal(bits(weight)[~update.isnan()], bits(expected)[~update.isnan()])
    assert weight[update.isnan()].isnan().all()
    vanished = (bits(weight) == bits(before)) & (update != 0)
    assert vanished.sum() > 100
    assert counts.tolist() == [5000, 3, 3, int(vanished.sum()), 3]


def test_compensated_sums_are_kahans() -> None:
    generator = torch.Generator().manual_seed(4)
    weight, rest = torch.randn(3000, generator=generator).bfloat16(), torch.zeros(3000, dtype=torch.bfloat16)
    exact, first = weight.double(), weight.double()
    for _ in range(200):
        update = torch.randn(3000, generator=generator) * 1e-3
        wanted = update + rest.float()
        after = (weight.float() + wanted).bfloat16()
        kept = (wanted - (after.float() - weight.float())).bfloat16()
        add_bfloat16(weight, update, mode="kahan", compensation=rest)
        exact += update.double()
        assert torch.equal(bits(weight), bits(after))
        assert torch.equal(bits(rest), bits(kept))
    both = weight.double() + rest.double()
    assert (both - exact).norm() < 0.01 * (exact - first).norm()


@pytest.mark.parametrize(("mode", "told"), [("stochastc", "did you mean 'stochastic'"), ("nearest", "known: kahan")])
def test_an_unknown_mode_of_a_sum_is_told(mode: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        add_bfloat16(torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1), mode=mode)
