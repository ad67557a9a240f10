"""The kernels against float64 arithmetic on signs, on every instruction set: exactly, for every odd size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from engine.ops import binary
from engine.ops.binary import BinaryConvolution, Thresholds, pack_signs, pool_bits, threshold, unpack_signs


def signs(*shape: int) -> torch.Tensor:
    return torch.where(torch.rand(*shape) < 0.5, -1.0, 1.0)


def plus_of(weight: torch.Tensor) -> np.ndarray:
    """Return weights [f, c, h, w] of +-1 as the kernels take them."""
    return (weight > 0).permute(0, 2, 3, 1).numpy()


def bits_of(images: torch.Tensor) -> torch.Tensor:
    return pack_signs(images.permute(0, 2, 3, 1).contiguous())


def reference(images, weight, border, stride=(1, 1), padding=(0, 0), dilation=(1, 1)) -> torch.Tensor:
    """Return the convolution in float64 [n, h, w, f], as integers."""
    around = (padding[1], padding[1], padding[0], padding[0])
    padded = functional.pad(images.double(), around, value=border)
    return functional.conv2d(padded, weight.double(), None, stride, 0, dilation).permute(0, 2, 3, 1).to(torch.int32)


def test_the_best_instruction_set_is_what_the_processor_has():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in lines if line.startswith(("flags", "Features"))).split()
    sets = binary.instruction_sets()
    assert sets["baseline"]
    if "vpopcntdq" in sets:
        has = {"avx512_vpopcntdq", "avx512_vnni", "avx512vl", "avx512bw", "avx512dq", "avx512cd"} <= set(flags)
        assert sets["vpopcntdq"] == has
        assert sets["avx2"] == ({"avx2", "fma", "bmi1", "bmi2"} <= set(flags))


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 16, 61])
@pytest.mark.parametrize("k", [1, 31, 32, 33, 64, 100, 1055, 4096])
def test_a_product_of_signs_is_exact(isa, rows, k):
    a, b = signs(rows, k), signs(45, k)
    product = BinaryConvolution(plus_of(b[:, :, None, None]), isa=isa)(pack_signs(a)[:, None, None])
    assert torch.equal(product.view(rows, 45).double(), a.double() @ b.double().T)


def test_a_sum_of_agreeing_bits_is_the_largest_and_the_smallest_for_any_length(isa):
    for k in (1, 63, 64, 65, 8191):  # more words than a byte can count
        ones = torch.ones(1, k)
        product = BinaryConvolution(np.stack([np.ones((1, 1, k), bool), np.zeros((1, 1, k), bool)]), isa=isa)
        assert product(pack_signs(ones)[:, None, None]).flatten().tolist() == [k, -k]


sizes = st.fixed_dictionaries({
    "batch": st.integers(1, 3), "channels": st.integers(1, 70), "height": st.integers(1, 9), "width": st.integers(1, 9),
    "filters": st.integers(1, 70), "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)), "seed": st.integers(0, 1000),
})  # fmt: skip


def fits(case) -> bool:
    return all(
        size + 2 * p >= d * (k - 1) + 1
        for size, p, d, k in zip(
            (case["height"], case["width"]), case["padding"], case["dilation"], case["kernel"], strict=True
        )
    )


@settings(max_examples=150, deadline=None)
@given(sizes.filter(fits), st.sampled_from([-1, 1]))
def test_a_convolution_of_signs_is_exact(case, border):
    torch.manual_seed(case["seed"])
    images = signs(case["batch"], case["channels"], case["height"], case["width"])
    weight = signs(case["filters"], case["channels"], *case["kernel"])
    geometry = {name: case[name] for name in ("stride", "padding", "dilation")}
    expected = reference(images, weight, border, **geometry)
    for name, here in binary.instruction_sets().items():
        if here:
            convolution = BinaryConvolution(plus_of(weight), border=border, isa=name, **geometry)
            assert torch.equal(convolution(bits_of(images)), expected), name


@settings(max_examples=100, deadline=None)
@given(sizes.filter(fits), st.integers(0, 255))
def test_a_convolution_of_bytes_is_exact(case, border):
    torch.manual_seed(case["seed"])
    images = torch.randint(0, 256, (case["batch"], case["channels"], case["height"], case["width"]))
    weight = signs(case["filters"], case["channels"], *case["kernel"])
    geometry = {name: case[name] for name in ("stride", "padding", "dilation")}
    expected = reference(images, weight, border, **geometry)
    pixels = images.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    for name, here in binary.instruction_sets().items():
        if here:
            convolution = BinaryConvolution(plus_of(weight), of_bytes=True, border=border, isa=name, **geometry)
            assert torch.equal(convolution(pixels), expected), name


def test_bytes_of_255_do_not_overflow(isa):
    weight = torch.ones(3, 5000, 1, 1)
    weight[1] = -1
    white = torch.full((1, 1, 1, 5000), 255, dtype=torch.uint8)
    sums = BinaryConvolution(plus_of(weight), of_bytes=True, border=0, isa=isa)(white)
    assert sums.flatten().tolist() == [255 * 5000, -255 * 5000, 255 * 5000]


def test_thresholds_give_the_bits_of_the_sums(isa):
    images, weight = signs(3, 40, 6, 5), signs(71, 40, 3, 3)
    sums = reference(images, weight, -1, padding=(1, 1))
    least = torch.randint(-30, 30, (71,), dtype=torch.int32)
    least[:4] = torch.tensor([binary.LEAST, binary.MOST, 360, -360])
    inverted = torch.rand(71) < 0.5
    expected = torch.where((sums >= least) ^ inverted, 1.0, -1.0)
    kept = Thresholds.of(least, inverted)
    bits = BinaryConvolution(plus_of(weight), padding=(1, 1), thresholds=kept, isa=isa)(bits_of(images))
    assert torch.equal(unpack_signs(bits, 71), expected)
    assert torch.equal(threshold(sums, kept, isa), bits)
    assert torch.equal(bits, pack_signs(expected)), "bits behind the last filter are clear"


def test_results_do_not_depend_on_threads(isa):
    threads = torch.get_num_threads()
    images, weight = signs(7, 70, 9, 9), signs(150, 70, 3, 3)
    found = []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found.append(BinaryConvolution(plus_of(weight), padding=(1, 1), isa=isa)(bits_of(images)))
            found.append(BinaryConvolution(plus_of(weight), padding=(1, 1), isa=isa)(bits_of(images[:1])))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[number % 2]) for number, one in enumerate(found))


def test_signs_of_zero_and_of_what_is_no_number(isa):
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-45, float("inf"), -float("inf"), float("nan"), 3.0])
    assert unpack_signs(pack_signs(values, isa), 8).tolist() == [1, 1, 1, -1, 1, -1, -1, 1]


@pytest.mark.parametrize("k", [1, 31, 32, 33, 100, 4099])
def test_packing_and_unpacking(isa, k):
    values = torch.randn(5, 3, k)
    assert torch.equal(unpack_signs(pack_signs(values, isa), k), torch.where(values >= 0, 1.0, -1.0))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (1, 1, 0), (2, 3, 1)])
def test_pooling_bits_is_the_maximum_of_signs(kernel, stride, padding):
    images = torch.where(torch.rand(2, 37, 9, 8) < 0.8, -1.0, 1.0)
    expected = functional.max_pool2d(images, kernel, stride, padding)
    bits = bits_of(images)
    before = bits.clone()
    pooled = pool_bits(bits, [kernel] * 2, [stride] * 2, [padding] * 2)
    assert torch.equal(unpack_signs(pooled, 37).permute(0, 3, 1, 2), expected)
    assert torch.equal(bits, before)


@pytest.mark.parametrize(
    ("activations", "reason"),
    [
        (torch.zeros(1, 5, 5, 3, dtype=torch.int32), "must be"),
        (torch.zeros(1, 5, 5, 2, dtype=torch.float32), "dense int32"),
        (torch.zeros(1, 5, 2, 5, dtype=torch.int32).transpose(2, 3), "dense int32"),
        (torch.zeros(1, 2, 5, 2, dtype=torch.int32), "smaller than the kernel"),
        (torch.zeros(5, 2, dtype=torch.int32), "must be"),
    ],
)
def test_activations_that_do_not_fit_are_refused(activations, reason):
    with pytest.raises(ValueError, match=reason):
        BinaryConvolution(np.ones((4, 3, 3, 40), bool))(activations)


def test_an_empty_batch_gives_an_empty_result():
    convolution = BinaryConvolution(np.ones((4, 3, 3, 40), bool))
    assert convolution(torch.zeros(0, 5, 5, 2, dtype=torch.int32)).shape == (0, 3, 3, 4)


def test_settings_that_do_not_fit_are_refused():
    plus = np.ones((4, 3, 3, 40), bool)
    with pytest.raises(ValueError, match="border of 0"):
        BinaryConvolution(plus, border=0)
    with pytest.raises(ValueError, match="at least 1"):
        BinaryConvolution(plus, stride=(0, 1))
    with pytest.raises(ValueError, match="must be bool"):
        BinaryConvolution(plus.astype(np.uint8))
    with pytest.raises(ValueError, match="4 thresholds"):
        BinaryConvolution(plus, thresholds=Thresholds.of(torch.zeros(40).int(), torch.zeros(40).bool()))
    with pytest.raises(ValueError, match="no instruction set"):
        BinaryConvolution(plus, isa="mmx")(torch.zeros(1, 5, 5, 2, dtype=torch.int32))


@pytest.mark.parametrize("isa", ["baseline", "mmx"])
def test_engine_isa_names_the_instruction_set(isa):
    code = "from engine.ops.binary import instruction_set; print(instruction_set())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "ENGINE_ISA": isa}, capture_output=True, text=True
    )
    if isa == "baseline":
        assert done.stdout.strip() == isa
    else:
        assert "ENGINE_ISA=mmx: no such instruction set" in done.stderr
