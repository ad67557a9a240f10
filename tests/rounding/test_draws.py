"""Which random bits an element gets, and that the expected value is the number: against Philox and the binomial law."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.ops import philox
from engine.ops.rounding import round_bfloat16, round_fixed

STEPS = 4000


def words(key: int, counters: Tensor, step: int) -> Tensor:
    """Return int64 [n, 4]: Philox of the counters (low word, high word, step, 0)."""
    return philox(key, counters, step + 1)[:, 4 * step :]


def draws(key: int, first: int, count: int, step: int) -> Tensor:
    """Return the first 16 bits of elements, as csrc/rounding_draws.h says, computed by ``ops.philox``."""
    element = torch.arange(first, first + count)
    row = element % 128 // 16
    block = words(key, element // 128 * 16 + element % 16, step)
    word = block.gather(1, (row % 4)[:, None])[:, 0]
    return torch.where(row < 4, word & 0xFFFF, word >> 16)


@pytest.mark.parametrize("first", [0, 5, 127, 2**36 - 3])
@pytest.mark.parametrize("key", [1, 0xFEDCBA9876543210])
def test_the_bits_are_those_of_philox(key: int, first: int) -> None:
    drawn = draws(key, first, 1000, 3)
    given = {"mode": "stochastic", "key": key, "step": 3, "offset": first}
    for fraction in (0.5, 0.25, 1 / 65536, 65535 / 65536, 12345 / 65536):
        up = drawn < fraction * 65536
        for dtype in (torch.float32, torch.float64):
            x = torch.full((1000,), 7 + fraction, dtype=dtype)
            assert torch.equal(round_fixed(x, 8, 0, **given), 7.0 + up.to(dtype))
            assert torch.equal(round_fixed(-x, 8, 0, **given), -7.0 - up.to(dtype))
    # Of bfloat16 the lower 16 bits are the fraction, from 1 on in units of 2^-23.
    lower = torch.randint(0, 65536, (1000,), generator=torch.Generator().manual_seed(first % 1000))
    rounded = round_bfloat16((1 + lower.double() * 2.0**-23).float(), **given)
    assert torch.equal(rounded.float(), 1 + (lower + drawn >= 65536) * 2.0**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_16_bits_leave_it_open_64_more_decide(dtype: torch.dtype) -> None:
    key, step, count = 77, 2, 1 << 19
    drawn = draws(key, 0, count, step)
    rest = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Fractions that begin with the very bits that are drawn.
    x = (drawn.double() + rest) / 65536
    x = x.to(dtype)
    x = torch.where((x * 65536).floor() == drawn, x, drawn.to(dtype) / 65536)
    rest = x.double() * 65536 - drawn
    up = round_fixed(x, 8, 0, mode="stochastic", key=key, step=step) == 1
    # ops.philox has no counter with a step beyond 32 bits: that the further bits are those is checked by their law.
    expected, variance = rest.sum(), (rest * (1 - rest)).sum()
    assert abs(up.sum() - expected) < 5 * variance**0.5
    assert not up[rest == 0].any()
    for low in (0.0, 0.25, 0.5, 0.75):
        part = (rest >= low) & (rest < low + 0.25)
        deviation = (rest[part] * (1 - rest[part])).sum() ** 0.5
        assert abs(up[part].sum() - rest[part].sum()) < 5 * deviation


def z_values(x: Tensor, spacing: float, mode: str, rounding) -> Tensor:  # type: ignore[no-untyped-def]
    """Return the deviation of each element's mean over STEPS steps, in its theoretical standard deviations."""
    low = (x.double() / spacing).floor()
    up = sum((rounding(x, step).double() / spacing - low) for step in range(STEPS))
    probability = x.double() / spacing - low
    assert isinstance(up, Tensor)
    return (up / STEPS - probability) / (probability * (1 - probability) / STEPS).sqrt()


@pytest.mark.parametrize(
    "base", [0.0, 1.0, 30000.25 / 1024, -30000.25 / 1024, -3.0, 2.0**-9, 31.9, 2.0**-20], ids="from {:.4g}".format
)
def test_the_mean_is_the_number_itself(base: float) -> None:
    generator = torch.Generator().manual_seed(int(abs(base) * 1000) + 1)
    x = base + torch.rand(512, generator=generator) * 2.0**-10 * (0.05 if base == 2.0**-20 else 1)
    x = x[(x.double() * 1024 % 1 > 0.003) & (x.double() * 1024 % 1 < 0.997)]
    assert len(x) > 400
    z = z_values(x, 2.0**-10, "fixed", lambda x, step: round_fixed(x, 6, 10, mode="stochastic", key=1, step=step))
    assert z.abs().max() < 5.5
    assert abs(z.mean()) < 5 / len(z) ** 0.5
    assert 0.85 < z.std() < 1.15


def test_the_mean_of_a_large_number_is_it_to_a_thousandth_of_its_spacing() -> None:
    # 30000.25 * 2^10 has no room for a random number behind its point: floor(x + u) is biased, and moves whole numbers.
    count = 1 << 22
    x = torch.full((count,), 30000.25)
    up = (round_fixed(x, 20, 0, mode="stochastic", key=4, step=6) - 30000).double().mean()
    assert abs(up - 0.25) < 5 * (0.25 * 0.75 / count) ** 0.5
    assert set(round_fixed(x, 20, 0, mode="stochastic", key=4).unique().tolist()) == {30000.0, 30001.0}


@pytest.mark.parametrize("size", [2.0**-18, 2.0**-20, 3 * 2.0**-22])
def test_a_fraction_below_the_16_bits_is_rounded_up_as_often_as_it_says(size: float) -> None:
    count = 1 << 22
    for sign in (1, -1):
        up = round_fixed(torch.full((count,), sign * size), 8, 0, mode="stochastic", key=8, step=sign + 1).abs().sum()
        assert abs(up - size * count) < 5 * (size * count) ** 0.5 + 1
    assert (round_fixed(torch.full((count,), 2.0**-100), 8, 0, mode="stochastic", key=8) == 0).all()


def test_bfloat16_has_the_number_itself_as_its_mean() -> None:
    generator = torch.Generator().manual_seed(5)
    x = 1 + torch.rand(512, generator=generator) * 0.99
    x = x[(x.double() * 128 % 1 > 0.003) & (x.double() * 128 % 1 < 0.997)]
    z = z_values(x, 2.0**-7, "bfloat16", lambda x, step: round_bfloat16(x, mode="stochastic", key=2, step=step))
    assert z.abs().max() < 5.5
    assert abs(z.mean()) < 5 / len(z) ** 0.5
    assert 0.85 < z.std() < 1.15


def test_keys_and_steps_draw_independently() -> None:
    x = torch.full((1 << 16,), 0.5)
    drawn = torch.stack([
        round_fixed(x, 4, 0, mode="stochastic", key=key, step=step)
        for key, step in ((1, 0), (2, 0), (1, 1), (1, 1 << 32), (1 << 32, 0), (1 << 63, 0))
    ])  # fmt: skip
    correlation = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert correlation.abs().max() < 5 / x.numel() ** 0.5
