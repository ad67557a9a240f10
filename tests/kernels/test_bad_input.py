"""Shapes, types, devices and names that do not fit are refused in words; nothing is read or written by mistake."""

from __future__ import annotations

import pytest
import torch
from installed import KERNELS, SPECS, geometry, tensors

from engine import ConvSpec, UsageError
from engine.native import NativeKernel
from engine.ops import NATIVE, Convolution, extension, instruction_set, instruction_sets, register, registered
from engine.plugins.kernels.compiled import CompiledKernel

ops = torch.ops.engine
ONE = ((1, 1), (1, 1), (1, 1), 1)
zeros = torch.zeros
every_kernel = pytest.mark.parametrize("name", KERNELS)

IMAGES, WEIGHT = zeros(2, 4, 6, 5), zeros(3, 4, 3, 3)
BAD = {
    "three dimensions": (zeros(4, 6, 5), WEIGHT, None, ONE, r"images must have 4 dimensions, not \[4, 6, 5\]"),
    "a flat weight": (IMAGES, zeros(3, 36), None, ONE, "weight must have 4 dimensions"),
    "other channels": (zeros(2, 5, 6, 5), WEIGHT, None, ONE, "images of 5 channels.* do not fit"),
    "odd groups": (IMAGES, zeros(3, 2, 3, 3), None, (*ONE[:3], 2), "filters a multiple of groups"),
    "no groups": (IMAGES, WEIGHT, None, (*ONE[:3], 0), "0 groups do not fit"),
    "no rows": (IMAGES, zeros(3, 4, 0, 3), None, ONE, r"weight of shape \[3, 4, 0, 3\] has nothing to compute with"),
    "no filters": (IMAGES, zeros(0, 4, 3, 3), None, ONE, "has nothing to compute with"),
    "no channels": (zeros(2, 0, 6, 5), zeros(3, 0, 3, 3), None, ONE, "has nothing to compute with"),
    "a small image": (zeros(2, 4, 1, 5), zeros(3, 4, 4, 3), None, ONE, "images of 1 x 5 are smaller than the filter"),
    "no pixels": (zeros(2, 4, 0, 5), WEIGHT, None, ONE, "images of 0 x 5 are smaller than the filter"),
    "wide dilation": (IMAGES, WEIGHT, None, ((1, 1), (1, 1), (9, 9), 1), "smaller than the filter"),
    "stride 0": (IMAGES, WEIGHT, None, ((0, 1), *ONE[1:]), "stride must be two numbers of at least 1"),
    "negative padding": (IMAGES, WEIGHT, None, ((1, 1), (-1, 0), *ONE[2:]), "padding must be two numbers"),
    "dilation 0": (IMAGES, WEIGHT, None, (*ONE[:2], (1, 0), 1), "dilation must be two numbers"),
    "a long bias": (IMAGES, WEIGHT, zeros(4), ONE, r"bias must have shape \[3\], not \[4\]"),
    "a bias in a column": (IMAGES, WEIGHT, zeros(3, 1), ONE, r"bias must have shape \[3\], not \[3, 1\]"),
    "a double bias": (IMAGES, WEIGHT, zeros(3).double(), ONE, "of one type on one device"),
    "a double weight": (IMAGES, WEIGHT.double(), None, ONE, "of one type on one device"),
    "two devices": (IMAGES, zeros(3, 4, 3, 3, device="meta"), None, ONE, "of one type on one device"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ["naive", "implicit", "winograd4", "fft"])
def test_what_does_not_fit_is_said(case, name):
    images, weight, bias, rest, told = BAD[case]
    with pytest.raises(ValueError, match=told):
        ops.conv2d(images, weight, bias, *rest, f"{name}/{name}/{name}")


@every_kernel
def test_gradients_of_another_shape_are_refused(name):
    spec = SPECS["plain"]
    images, weight, _, gradient = tensors(spec, requires_grad=False)
    rest = (*geometry(spec), f"{name}/{name}/{name}")
    told = r"gradient must have shape \[2, 3, 6, 5\], not"
    for wrong in (gradient[:, :2], gradient[:1], gradient[..., :4], gradient[:0]):
        with pytest.raises(ValueError, match=told):
            ops.conv2d_input(wrong, weight, spec.input_shape, *rest)
        with pytest.raises(ValueError, match=told):
            ops.conv2d_weight(wrong, images, spec.weight_shape, *rest)
    with pytest.raises(ValueError, match="images must have 4 dimensions"):
        ops.conv2d_input(gradient, weight, spec.input_shape[1:], *rest)
    with pytest.raises(ValueError, match="do not fit"):
        ops.conv2d_weight(gradient, images, (3, 5, 3, 3), *rest)


@pytest.mark.parametrize("name", [name for name, k in KERNELS.items() if isinstance(k, CompiledKernel)])
def test_compiled_kernels_read_no_memory_that_is_not_theirs(name):
    kernel = KERNELS[name]
    spec = SPECS["depthwise" if name == "depthwise" else "plain"]
    images, weight, bias, gradient = tensors(spec, torch.float32, requires_grad=False)
    for wrong in (images[:1], images.double(), images.to("meta"), images[0]):
        with pytest.raises(ValueError, match=r"a tensor must be torch.float32 \[2, 4, 6, 5\] on the CPU, not"):
            kernel.forward(wrong, weight, None, spec)
    with pytest.raises(ValueError, match="a tensor must be"):
        kernel.backward_input(gradient[:1], weight, spec)
    with pytest.raises(ValueError, match="a tensor must be"):
        kernel.backward_weight(gradient, images[:, :2], spec)
    for wrong in (bias[:2], bias.double(), bias.to("meta")):
        with pytest.raises(ValueError, match="the bias must be"):
            kernel.forward(images, weight, wrong, spec)
    with pytest.raises(ValueError, match="prepared for another shape or algorithm"):
        kernel.forward(images, torch.zeros(3, dtype=torch.uint8), None, spec)


@pytest.mark.parametrize("name", ["implicit", "winograd4", "fft", "depthwise"])
def test_prepared_weights_that_are_not_as_they_were_made_are_refused(name):
    kernel, spec = KERNELS[name], SPECS["depthwise"]
    images, weight, _, _ = tensors(spec, torch.float32, requires_grad=False)
    good = kernel.prepare(weight, spec)
    assert good.dtype == torch.uint8
    torch.testing.assert_close(
        kernel.forward(images, good.clone(), None, spec), kernel.forward(images, good, None, spec)
    )
    longer = zeros(len(good) + 64, dtype=torch.uint8)
    emptied = good.clone()
    emptied.untyped_storage().resize_(0)
    for wrong, told in {
        "expanded": (zeros(1, dtype=torch.uint8).expand(len(good)), "dense, on the CPU and aligned to 64 bytes"),
        "strided": (zeros(2 * len(good), dtype=torch.uint8)[::2], "dense, on the CPU and aligned"),
        "elsewhere": (good.to("meta"), "dense, on the CPU and aligned"),
        "misaligned": (longer[4 : 4 + len(good)], "dense, on the CPU and aligned"),
        "long": (longer, "prepared for another shape"),
        "emptied": (emptied, "has no memory"),
    }.values():
        with pytest.raises(ValueError, match=told):
            kernel.forward(images, wrong, None, spec)


def test_tensors_whose_memory_was_taken_away_are_refused():
    kernel, spec = KERNELS["naive"], SPECS["plain"]
    arguments = tensors(spec, torch.float32, requires_grad=False)
    for number in range(4):
        given = [tensor.clone() for tensor in arguments]
        given[number].untyped_storage().resize_(0)  # as sharded training does with weights
        images, weight, bias, gradient = given
        with pytest.raises(ValueError, match="has no memory"):
            kernel.forward(images, weight, bias, spec) if number < 3 else kernel.backward_input(gradient, weight, spec)
    with pytest.raises(ValueError, match="has no memory"):
        kernel.backward_weight(gradient, images, spec)


HUGE = {
    "images": ConvSpec(1 << 30, 1 << 20, 8, 8, 1 << 20, (1, 1), groups=1 << 20),
    "filters": ConvSpec(1, 1 << 25, 8, 8, 1 << 25, (3, 3), padding=(1, 1)),
    "output": ConvSpec(1 << 20, 1, 1 << 10, 1 << 10, 1 << 20, (1, 1)),
    "padding": ConvSpec(1 << 10, 4, 3, 3, 4, (3, 3), (1 << 23, 1 << 23), (1 << 22, 1 << 22)),
    "work": ConvSpec(1 << 10, 1 << 10, 1 << 10, 1 << 10, 1 << 20, (1, 1)),
    "batch": ConvSpec((1 << 63) - 1, 1, 1, 1, 1, (1, 1)),
}


@pytest.mark.parametrize("name", [name for name, k in KERNELS.items() if isinstance(k, CompiledKernel)])
def test_what_is_too_large_to_count_is_refused_and_nothing_is_computed_from_it(name):
    code = Convolution(name)
    for what, spec in HUGE.items():
        assert code.refuses(spec, "forward") == "it has more elements than can be counted in bytes", what
        for question in (
            lambda: code.workspace(spec, "forward"), lambda: code.waste(spec),  # noqa: B023 (called here)
            lambda: code.prepare(zeros(1), spec),  # noqa: B023
        ):  # fmt: skip
            with pytest.raises(ValueError, match="more elements than can be counted"):
                question()


@pytest.mark.parametrize("name", [name for name, k in KERNELS.items() if isinstance(k, CompiledKernel)])
def test_questions_about_what_is_refused_are_refused(name):
    code = Convolution(name)
    empty = ConvSpec(0, 4, 6, 5, 4, (3, 3))
    refused = [(empty, "a size is less than 1")]
    for spec in SPECS.values():
        if reason := code.refuses(spec, "forward"):
            refused.append((spec, reason))
    for spec, reason in refused:
        for question in (
            lambda: code.workspace(spec, "forward"), lambda: code.waste(spec),  # noqa: B023 (called here)
            lambda: code.prepare(zeros(1), spec),  # noqa: B023
        ):  # fmt: skip
            with pytest.raises(ValueError, match=reason):
                question()


def test_addresses_are_given_to_no_kernel_with_a_wrong_size_direction_or_number_of_threads():
    code, sizes = Convolution("implicit")._code, SPECS["plain"].sizes
    no_addresses = [0] * 6
    for wrong, told in (((0, 2, 1), "4 or 8 bytes"), ((3, 4, 1), "0, 1 or 2"), ((0, 8, 0), "at least 1 thread")):
        direction, size, threads = wrong
        with pytest.raises(ValueError, match=told):
            code.workspace(sizes, direction, size, threads, False)
        with pytest.raises(ValueError, match=told):
            code.run(sizes, direction, size, *no_addresses, threads)
    for call in (lambda: code.prepared_bytes(sizes, 5), lambda: code.prepare(sizes, 5, 0, 0, 1)):
        with pytest.raises(ValueError, match="4 or 8 bytes"):
            call()
    with pytest.raises(ValueError, match="0, 1 or 2"):
        code.refuses(sizes, -1)


def test_what_compiled_kernels_do_not_compute_is_refused_in_words():
    kernel = CompiledKernel("naive")
    half = ConvSpec(2, 4, 6, 5, 3, (3, 3), dtype=torch.bfloat16)
    assert kernel.refuses(half, "forward") == "it computes in float32 and float64, not bfloat16"
    for question in (lambda: kernel.workspace(half, "forward"), lambda: kernel.prepare(WEIGHT.bfloat16(), half)):
        with pytest.raises(ValueError, match=r"float32 and float64, not torch\.bfloat16"):
            question()
    gpu = ConvSpec(2, 4, 6, 5, 3, (3, 3), device="cuda")
    assert kernel.refuses(gpu, "forward") == "it computes on the CPU only"


def test_another_type_is_left_to_torch_with_a_warning():
    images, weight = torch.randn(2, 4, 6, 5, dtype=torch.bfloat16), torch.randn(3, 4, 3, 3, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="naive gives way to native in the forward .* not bfloat16"):
        output = ops.conv2d(images, weight, None, *ONE, "naive/naive/naive")
    torch.testing.assert_close(output, torch.nn.functional.conv2d(images, weight, padding=1))


def test_names_of_kernels_are_checked():
    images, weight = zeros(2, 4, 6, 5), zeros(3, 4, 3, 3)
    with pytest.raises(ValueError, match=r"no convolution kernel is called 'naïve'; registered are .*naive"):
        ops.conv2d(images, weight, None, *ONE, "naïve/naive/naive")
    with pytest.raises(ValueError, match="must name one for each of forward/backward_input/backward_weight"):
        ops.conv2d(images, weight, None, *ONE, "naive/naive")
    for bad in ("", "a/b"):
        with pytest.raises(ValueError, match="letters without a slash"):
            register(CompiledKernel(bad))


class Taken(NativeKernel):
    name = "taken"


def test_a_name_is_that_of_one_class():
    class Thief(NativeKernel):
        name = "taken"

    first, second = Taken(), Taken()
    register(first)
    register(second)  # of the same class: made anew with other options
    assert registered("taken") is second
    with pytest.raises(UsageError, match=r"two .* are called 'taken': .*test_bad_input\.Taken and .*Thief; .* rename"):
        register(Thief())
    assert registered("taken") is second
    for impostor in (NativeKernel(), Convolution("naive")):
        impostor.name = "native"
        for settings in ({}, {"replace": True}):
            with pytest.raises(UsageError, match=r"'native': engine\.native\.NativeKernel and "):
                register(impostor, **settings)
    assert registered("native") is NATIVE is KERNELS["native"]


def test_unknown_algorithms_and_instruction_sets_are_refused():
    with pytest.raises(ValueError, match="no algorithm is called strassen"):
        Convolution("strassen")
    with pytest.raises(ValueError, match="no instruction set is called sse9"):
        Convolution("naive", "sse9")


@pytest.fixture
def forced(monkeypatch):
    """Return a function that forces an instruction set as the environment does, and returns which is in use."""

    def force(name):
        monkeypatch.setenv("ENGINE_ISA", name)
        instruction_set.cache_clear()
        return instruction_set()

    yield force
    monkeypatch.undo()
    instruction_set.cache_clear()


def test_an_instruction_set_can_be_forced(forced):
    usable = [name for name, here in instruction_sets().items() if here]
    assert "baseline" in usable
    assert [forced(name) for name in usable] == usable
    assert forced("") == usable[0]


def test_an_instruction_set_that_cannot_be_used_is_said(forced, monkeypatch):
    with pytest.raises(UsageError, match=r"ENGINE_ISA=baselin: no such instruction set; did you mean 'baseline'"):
        forced("baselin")
    monkeypatch.setattr(extension, "instruction_sets", lambda: {"sve2": False, "neon": True, "scalar": True})
    with pytest.raises(UsageError, match="ENGINE_ISA=sve2: this processor lacks it; it has neon, scalar"):
        forced("sve2")
