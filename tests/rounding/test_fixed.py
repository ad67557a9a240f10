"""Fixed point against float64 computations in numpy: grids, ties, saturation, counts, and every special value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import UsageError
from engine.ops.rounding import round_dynamic, round_fixed

FORMATS = [(6, 10), (8, 8), (2, 14), (1, 15), (16, 0), (20, -4), (-3, 19)]
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38]


def grid(il: int, fl: int) -> Tensor:
    """Return every number of <il, fl>, float64."""
    half = 1 << (il + fl - 1)
    return torch.arange(-half, half, dtype=torch.float64) * 2.0**-fl


def reference(x: Tensor, il: int, fl: int, symmetric: bool = False) -> np.ndarray:
    """Return the nearest numbers of <il, fl>, half to even, computed in float64."""
    top = 2.0 ** (il + fl - 1)
    with np.errstate(invalid="ignore"):
        return np.clip(np.rint(x.double().numpy() * 2.0**fl), 1 - top if symmetric else -top, top - 1) * 2.0**-fl


def counted(x: Tensor, il: int, fl: int, symmetric: bool = False) -> list[int]:
    """Return what is counted of rounding ``x`` to the nearest, from its definition."""
    values, top = x.double().numpy(), 2.0 ** (il + fl - 1)
    with np.errstate(invalid="ignore"):
        whole = np.rint(values * 2.0**fl)
    saturated = (whole > top - 1) | (whole < (1 - top if symmetric else -top))
    upper, zeroed = np.abs(values) > 2.0 ** (il - 2), (whole == 0) & (values != 0)
    return [len(values), *(int(what.sum()) for what in (saturated, upper, zeroed, ~np.isfinite(values)))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("il", "fl"), FORMATS)
def test_no_number_of_the_format_moves(il: int, fl: int, dtype: torch.dtype) -> None:
    numbers = grid(il, fl).to(dtype)
    assert torch.equal(round_fixed(numbers, il, fl), numbers)
    for key in range(16):
        assert torch.equal(
            round_fixed(numbers, il, fl, mode="stochastic", key=key * 0x123456789ABCDEF, step=key), numbers
        )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("il", "fl"), FORMATS)
def test_nearest_is_half_to_even_of_float64(il: int, fl: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(il * 100 + fl)
    numbers = grid(il, fl)
    ties = numbers + 2.0 ** (-fl - 1)
    values = torch.randn(200_000, generator=generator, dtype=torch.float64) * 2.0 ** (il - 1.5)
    small = torch.randn(10_000, generator=generator, dtype=torch.float64) * 2.0**-fl
    for dtype in (torch.float32, torch.float64):
        x = torch.cat([ties, values, small, torch.tensor(SPECIAL, dtype=torch.float64)]).to(dtype)
        counts = torch.zeros(5, dtype=torch.int64)
        rounded = round_fixed(x, il, fl, symmetric=symmetric, counts=counts)
        np.testing.assert_array_equal(rounded.double().numpy(), reference(x, il, fl, symmetric))
        assert torch.equal(rounded.signbit()[~x.isnan()], x.signbit()[~x.isnan()])
        assert counts.tolist() == counted(x, il, fl, symmetric)


@pytest.mark.parametrize("bits", [24, 25])
def test_formats_as_wide_as_float32_carries(bits: int) -> None:
    x = torch.cat([torch.arange(-(1 << 24), 1 << 24, 1021), torch.tensor([8388607, 8388608, 8388609, 16777215])])
    x = torch.cat([x.float(), torch.tensor([8388606.5, 8388607.5, 4194303.25, -8388607.5])])
    rounded = round_fixed(x, bits, 0)
    np.testing.assert_array_equal(rounded.double().numpy(), reference(x, bits, 0))
    inside = x[(x == x.round()) & (x >= -(2.0 ** (bits - 1))) & (x < 2.0 ** (bits - 1))]
    assert torch.equal(round_fixed(inside, bits, 0, mode="stochastic", key=7), inside)


@pytest.mark.parametrize("mode", ["nearest", "stochastic"])
def test_what_is_beyond_saturates_and_nan_stays(mode: str) -> None:
    counts = torch.zeros(5, dtype=torch.int64)
    x = torch.tensor([*SPECIAL, 40.0, -40.0, 32.0, -32.0, 8.0, 8.5])
    rounded = round_fixed(x, 6, 10, mode=mode, counts=counts)
    highest = 32 - 2.0**-10
    expected = [0, 0, highest, -32, float("nan"), 0, 0, 0, highest, -32, highest, -32, highest, -32, 8, 8.5]
    np.testing.assert_array_equal(rounded.numpy(), np.float32(expected))
    assert counts.tolist() == [16, 7, 8, 3, 3]
    assert round_fixed(x, 6, 10, mode=mode, symmetric=True)[3] == -highest
    round_fixed(x, 6, 10, mode=mode, counts=counts)
    assert counts.tolist() == [32, 14, 16, 6, 6], "counts are added to"


def test_a_range_on_the_device_is_the_format_of_that_range() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 3
    exponent = torch.zeros((), dtype=torch.int32)
    for e in (-7, 0, 1, 3, 12):
        exponent.fill_(e)
        for symmetric in (False, True):
            given = {"symmetric": symmetric, "mode": "stochastic", "key": 3, "step": e + 7}
            plain = round_fixed(x, e + 1, 10 - e - 1, **given)
            assert torch.equal(round_dynamic(x, 10, exponent, **given), plain)


@pytest.mark.parametrize("e", [-500, -130, 130, 500])
def test_a_range_beyond_the_carrier_is_the_last_one_that_it_has(e: int) -> None:
    numbers = torch.tensor([1e-45, 1e-38, 1e-30, 1.0, 3.4e38, -float("inf"), float("nan")])
    rounded = round_dynamic(numbers, 8, torch.tensor([e], dtype=torch.int32))
    assert rounded[-1].isnan()
    assert rounded[:-1].isfinite().all()
    assert torch.equal(round_dynamic(rounded, 8, torch.tensor(e, dtype=torch.int32))[:-1], rounded[:-1])
    assert (rounded[-3] > 1e38) == (e > 0)


@pytest.mark.parametrize(
    ("il", "fl", "dtype", "told"),
    [
        (16, 10, torch.float32, "<16, 10> has 26 bits with the sign; torch.float32 carries 2 to 25 exactly"),
        (1, 0, torch.float32, "<1, 0> has 1 bits"),
        (30, 25, torch.float64, "torch.float64 carries 2 to 54"),
        (-120, 130, torch.float32, "<-120, 130> is beyond the exponents of torch.float32"),
    ],
)
def test_a_format_that_its_carrier_cannot_hold_is_told(il: int, fl: int, dtype: torch.dtype, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        round_fixed(torch.zeros(1, dtype=dtype), il, fl)
