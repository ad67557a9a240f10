"""Convolution by torch's Fourier transforms against torch's own in float64, whole and in parts, on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_compiled import BOUNDS, DOUBLE, arguments, compute, reference, scale, specs, strided

from engine.interfaces import DIRECTIONS, ConvSpec
from engine.ops import spectral, spectral_plan
from engine.ops.spectral import SpectralConvolution
from engine.ops.spectral_plan import plan_of, smooth

CODE = SpectralConvolution()
LARGE = ConvSpec(2, 6, 40, 37, 4, (31, 29), padding=(15, 3), groups=2)


def errors(spec: ConvSpec, values: dict) -> dict[str, float]:
    """Return the relative error of each direction that is taken."""
    expected, size = reference(spec, values), scale(spec, values)
    taken = [direction for direction in DIRECTIONS if CODE.refuses(spec, direction) is None]
    results = {direction: compute(CODE, direction, spec, values) for direction in taken}
    assert all(results[direction].shape == expected[direction].shape for direction in taken)
    return {d: float((results[d].double() - expected[d]).norm()) / size[d] for d in taken}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(spec=specs(), other_strides=st.booleans(), limit=st.sampled_from([None, 40_000, 4_000]))
def test_any_shape_whole_and_in_parts(spec: ConvSpec, other_strides: bool, limit: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if limit:  # bytes: parts of all kinds, down to one number of each
            patch.setattr(spectral_plan, "LIMIT", limit)
            patch.setattr(CODE.__class__, "workspace", lambda *_: 0)
        plan_of.cache_clear()
        values = arguments(spec)
        if other_strides:
            values |= {name: strided(values[name]) for name in ("images", "weight", "gradient")}
        found = errors(spec, values)
        wide = replace(spec, dtype=torch.float64)
        exact = errors(wide, {name: value.double() for name, value in values.items()})
    plan_of.cache_clear()
    assume(found)
    assert max(found.values()) <= BOUNDS["fft"]
    assert max(exact.values()) <= DOUBLE


@pytest.mark.parametrize("spec", [LARGE, replace(LARGE, groups=1), ConvSpec(3, 5, 30, 30, 5, (21, 21), groups=5)])
def test_prepared_weights_give_the_same_bits(spec: ConvSpec) -> None:
    values = arguments(spec)
    prepared = CODE.prepare(values["weight"], spec)
    assert prepared.is_complex()
    whole = CODE.forward(values["images"], values["weight"], values["bias"], spec)
    assert torch.equal(CODE.forward(values["images"], prepared, values["bias"], spec), whole)
    assert CODE.workspace(spec, "forward", prepared=True) < CODE.workspace(spec, "forward")


def test_a_weight_that_a_call_reads_in_parts_is_not_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral_plan, "LIMIT", 100_000)
    plan_of.cache_clear()
    weight = arguments(LARGE)["weight"]
    assert CODE.prepare(weight, LARGE) is weight
    plan_of.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(spectral, "KEPT", 1000)
    assert CODE.prepare(weight, LARGE) is weight


def test_parts_need_no_more_than_the_limit() -> None:
    spec = ConvSpec(32, 256, 64, 64, 256, (31, 31), padding=(15, 15))
    for direction in DIRECTIONS:
        whole, part = plan_of(spec, direction)
        assert whole != part
        assert whole.peak() * 8 > spectral_plan.LIMIT >= part.peak() * 8 == CODE.workspace(spec, direction)


def test_what_cannot_be_computed_is_refused() -> None:
    far = ConvSpec(1, 1, 2, 9, 1, (1, 1), padding=(9, 0), stride=(10, 1))
    assert CODE.refuses(replace(far, stride=(9, 1)), "forward") is None
    assert CODE.refuses(replace(far, padding=(8, 0), stride=(17, 1)), "forward") == (
        "no tap of the filter ever falls on the image"
    )
    assert "float32 and float64, not bfloat16" in str(CODE.refuses(replace(LARGE, dtype=torch.bfloat16), "forward"))
    enormous = ConvSpec(1, 1, 40_000, 40_000, 1, (20_000, 20_000))
    assert CODE.refuses(enormous, "forward") == "its spectra would need more than 1 GiB"
    images, weight = torch.zeros(LARGE.input_shape), torch.zeros(LARGE.weight_shape)
    for wrong in ((images[:1], weight), (images.double(), weight), (images, weight[:2])):
        with pytest.raises(ValueError, match=r"a tensor must be torch\.float32"):
            CODE.forward(*wrong, None, LARGE)


@pytest.mark.parametrize("least", [1, 2, 11, 13, 97, 121, 1025])
def test_lengths_have_small_factors_and_are_the_least_of_them(least: int) -> None:
    small = {2**a * 3**b * 5**c * 7**d for a in range(12) for b in range(8) for c in range(6) for d in range(5)}
    assert smooth(least) == min(number for number in small if number >= least)


@pytest.fixture
def matmul():
    """Return torch's settings of matrix products on GPUs, which are its defaults again after the test."""
    yield torch.backends.cuda.matmul
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize("older", [True, False], ids=["set by allow_tf32", "set by fp32_precision"])
def test_matrices_are_multiplied_in_full_precision_and_the_setting_is_put_back(matmul, older: bool) -> None:
    if older:
        matmul.allow_tf32 = True
    else:
        matmul.fp32_precision = "tf32"
    with spectral._full_precision:
        with spectral._full_precision:  # of another thread, it might be
            assert (matmul.fp32_precision, matmul.allow_tf32) == ("ieee", False), "both of torch's settings agree"
        assert matmul.fp32_precision == "ieee", "one is within still"
    assert (matmul.fp32_precision, matmul.allow_tf32) == ("tf32", True)


def test_a_precision_that_is_full_already_is_left_alone(matmul) -> None:
    before = matmul.fp32_precision
    with spectral._full_precision:
        assert matmul.fp32_precision == before
    assert matmul.fp32_precision == before


def test_spectra_of_another_shape_type_or_kind_are_refused() -> None:
    values = arguments(LARGE)
    prepared, images = CODE.prepare(values["weight"], LARGE), values["images"]
    for wrong in (prepared[:1], prepared.to(torch.complex128), prepared.to("meta")):
        with pytest.raises(ValueError, match="prepared for another shape, type or device"):
            CODE.forward(images, wrong, None, LARGE)
