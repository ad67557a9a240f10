"""Every compiled algorithm, direction and instruction set against torch's convolution in float64, on random shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.errors import UsageError
from engine.interfaces import DIRECTIONS, ConvSpec
from engine.ops import Convolution, extension, instruction_sets

BOUNDS = {
    "naive": 5e-6, "im2col": 1e-6, "implicit": 1e-6, "winograd2": 1e-6, "winograd4": 6e-6, "winograd6": 1.5e-5,
    "fft": 1e-6, "depthwise": 1e-6,
}  # fmt: skip
HERE = [isa for isa, supported in instruction_sets().items() if supported]
DOUBLE = 1e-12


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    """Small filters and strides are frequent, as in networks; half of the shapes suit the special algorithms."""
    kind = draw(st.sampled_from(["any", "grouped", "depthwise", "plain", "plain", "3x3", "1x3", "3x1"]))
    groups = {"grouped": draw(st.integers(2, 3)), "depthwise": draw(st.integers(1, 40))}.get(kind, 1)
    channels = groups * (1 if kind == "depthwise" else draw(st.integers(1, 40)))
    filters = groups * (draw(st.integers(1, 2)) if kind == "depthwise" else draw(st.integers(1, 40)))
    fixed = {"3x3": (3, 3), "1x3": (1, 3), "3x1": (3, 1)}
    kernel = fixed.get(kind) or (draw(st.integers(1, 8)), draw(st.integers(1, 8)))
    simple = kind in ("plain", *fixed)
    pairs = st.just((1, 1)) if simple else st.tuples(st.integers(1, 3), st.integers(1, 3))
    padding = draw(st.tuples(st.integers(0, kernel[0]), st.integers(0, kernel[1])))
    stride, dilation = draw(pairs), draw(pairs)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    height, width = (draw(st.integers(size, size + 20)) for size in least)
    return ConvSpec(
        draw(st.integers(1, 3)), channels, height, width, filters, kernel, stride, padding, dilation, groups,
        channels_last=draw(st.booleans()),
    )  # fmt: skip


def arguments(spec: ConvSpec, seed: int = 0, relu: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fan_in = spec.channels // spec.groups * spec.kernel[0] * spec.kernel[1]
    shapes = {"images": spec.input_shape, "weight": spec.weight_shape, "gradient": spec.output_shape}
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    values = {
        name: torch.randn(shape, generator=generator).contiguous(memory_format=layout) for name, shape in shapes.items()
    }
    values["weight"] *= (2 / fan_in) ** 0.5  # He et al. 2015
    values["bias"] = torch.randn(spec.filters, generator=generator)
    if relu:
        values["images"].relu_()
    return values


def reference(spec: ConvSpec, values: dict[str, Tensor]) -> dict[str, Tensor]:
    x, w, g, b = (values[name].double() for name in ("images", "weight", "gradient", "bias"))
    geometry = (spec.stride, spec.padding, spec.dilation, False, (0, 0), spec.groups)
    output = torch.ops.aten.convolution(x, w, b, *geometry)
    mask = (True, True, False)
    to_images, to_weight, _ = torch.ops.aten.convolution_backward(g, x, w, None, *geometry, mask)
    return dict(zip(DIRECTIONS, (output, to_images, to_weight), strict=True))


def compute(code: Convolution, direction: str, spec: ConvSpec, values: dict[str, Tensor]) -> Tensor:
    if direction == "forward":
        return code.forward(values["images"], values["weight"], values["bias"], spec)
    if direction == "backward_input":
        return code.backward_input(values["gradient"], values["weight"], spec)
    return code.backward_weight(values["gradient"], values["images"], spec)


def error(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape
    return float((result.double() - expected).norm()) / (float(expected.norm()) or 1.0)


def scale(spec: ConvSpec, values: dict[str, Tensor]) -> dict[str, float]:
    """The norm of each result were its summands' signs drawn anew: a small sum of large numbers does not shrink it."""
    squares = reference(spec, {name: value.double().square() for name, value in values.items()})
    return {direction: float(result.sum().sqrt()) or 1.0 for direction, result in squares.items()}


def strided(tensor: Tensor) -> Tensor:
    """The same values in a view without any dense dimension."""
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)[..., 0]


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("algorithm", BOUNDS)
@settings(max_examples=50, deadline=None)
@given(spec=specs(), strides=st.booleans(), threads=st.sampled_from([1, 3]))
def test_any_shape(algorithm: str, isa: str, spec: ConvSpec, strides: bool, threads: int) -> None:
    code = Convolution(algorithm, isa)
    taken = [direction for direction in DIRECTIONS if not code.refuses(spec, direction)]
    torch.set_num_threads(threads)
    values = arguments(spec)
    expected, size = reference(spec, values), scale(spec, values)
    if strides:
        values |= {name: strided(values[name]) for name in ("images", "weight", "gradient")}
    doubles = {name: value.double() for name, value in values.items()}
    wide = ConvSpec.of(spec.input_shape, spec.weight_shape, spec.stride, spec.padding, spec.dilation, spec.groups,
                       dtype=torch.float64)  # fmt: skip

    def difference(direction: str, shape: ConvSpec, given: dict[str, Tensor]) -> float:
        result = compute(code, direction, shape, given)
        assert result.shape == expected[direction].shape
        return float((result.double() - expected[direction]).norm()) / size[direction]

    for direction in taken:
        assert difference(direction, spec, values) <= BOUNDS[algorithm], direction
        assert difference(direction, wide, doubles) <= DOUBLE, direction
    if "forward" in taken:
        values["weight"] = code.prepare(values["weight"], spec)
        assert difference("forward", spec, values) <= BOUNDS[algorithm]


TAKEN = {  # what each algorithm is there for: (channels, filters, kernel, stride, dilation, groups)
    "naive": (6, 4, (3, 2), (2, 1), (1, 2), 2),
    "im2col": (6, 4, (3, 2), (2, 1), (1, 2), 2),
    "implicit": (6, 4, (3, 2), (2, 1), (1, 2), 2),
    "winograd2": (5, 7, (3, 3), (1, 1), (1, 1), 1),
    "winograd4": (5, 7, (1, 3), (1, 1), (1, 1), 1),
    "winograd6": (5, 7, (3, 1), (1, 1), (1, 1), 1),
    "fft": (5, 7, (7, 5), (2, 1), (1, 1), 1),
    "depthwise": (6, 6, (5, 3), (2, 1), (1, 2), 6),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algorithm", TAKEN)
def test_an_algorithm_takes_what_it_is_there_for(algorithm: str, direction: str) -> None:
    channels, filters, kernel, stride, dilation, groups = TAKEN[algorithm]
    spec = ConvSpec(2, channels, 20, 18, filters, kernel, stride, (1, 1), dilation, groups)
    assert Convolution(algorithm).refuses(spec, direction) is None


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4", "winograd6", "fft"])
def test_what_is_refused_is_told_as_a_phrase(algorithm: str) -> None:
    spec = ConvSpec(1, 4, 200, 200, 4, (3, 3), dilation=(40, 40), stride=(2, 2))
    reason = Convolution(algorithm).refuses(spec, "forward")
    assert reason
    assert "not written" not in reason
    for dtype, device in ((torch.bfloat16, "cpu"), (torch.float32, "cuda")):
        plain = ConvSpec(1, 4, 9, 9, 4, (3, 3), dtype=dtype, device=device)
        assert Convolution(algorithm).refuses(plain, "forward")


@pytest.mark.parametrize("relu", [False, True], ids=["normal", "after a ReLU"])
@pytest.mark.parametrize("algorithm", [a for a in BOUNDS if a not in ("naive", "depthwise")])
def test_errors_stay_within_their_bounds_at_512_channels(algorithm: str, relu: bool) -> None:
    torch.set_num_threads(2)
    spec = ConvSpec(2, 512, 14, 14, 512, (3, 3), padding=(1, 1), channels_last=True)
    values = arguments(spec, relu=relu)
    expected = reference(spec, values)
    for direction in DIRECTIONS:
        result = compute(Convolution(algorithm), direction, spec, values)
        assert error(result, expected[direction]) <= BOUNDS[algorithm], direction


@pytest.mark.parametrize("algorithm", BOUNDS)
def test_long_sums_over_pixels_stay_within_the_bounds(algorithm: str) -> None:
    groups = 3 if algorithm == "depthwise" else 1
    spec = ConvSpec(4, 3, 150, 160, 3, (3, 3), padding=(1, 1), groups=groups, channels_last=True)
    if algorithm == "naive":  # one product after the other into one sum: its error grows with the number of pixels
        spec = ConvSpec(1, 3, 50, 60, 3, (3, 3), padding=(1, 1), channels_last=True)
    values = arguments(spec)
    result = compute(Convolution(algorithm), "backward_weight", spec, values)
    assert error(result, reference(spec, values)["backward_weight"]) <= BOUNDS[algorithm]


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("algorithm", BOUNDS)
def test_the_number_of_threads_changes_no_bit(algorithm: str, isa: str) -> None:
    groups = 24 if algorithm == "depthwise" else 1
    channels = 24 if algorithm == "depthwise" else 20
    for spec in (
        ConvSpec(2, channels, 33, 29, channels, (3, 3), padding=(1, 1), groups=groups),
        ConvSpec(1, channels, 9, 40, 2 * channels, (3, 3), padding=(0, 2), groups=groups),
    ):
        code, values = Convolution(algorithm, isa), arguments(spec)
        for direction in [d for d in DIRECTIONS if not code.refuses(spec, d)]:
            results = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(compute(code, direction, spec, values))
            assert torch.equal(results[0], results[1]), direction
            assert torch.equal(results[0], results[2]), direction


def test_a_workspace_is_told_and_grows_with_the_unfolded_matrix() -> None:
    spec = ConvSpec(4, 16, 28, 28, 8, (3, 3), padding=(1, 1))
    assert Convolution("naive").workspace(spec, "forward") == 0
    one_image = 28 * 28 * 16 * 9 * 4  # bytes of one image's patches
    assert Convolution("im2col").workspace(spec, "forward") >= one_image
    assert Convolution("implicit").workspace(spec, "forward") < one_image


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_fft_tells_what_a_stride_wastes(stride: int) -> None:
    spec = ConvSpec(1, 4, 33, 33, 4, (5, 5), stride=(stride, stride), padding=(2, 2))
    assert Convolution("fft").waste(spec) == stride**2 - 1  # one place of so many is kept


def test_arrays_that_are_not_what_the_spec_says_are_refused() -> None:
    spec = ConvSpec(1, 3, 8, 8, 4, (3, 3))
    values = arguments(spec)
    code = Convolution("naive")
    for name, wrong in (
        ("images", values["images"][:, :, :-1]), ("images", values["images"].double()),
        ("weight", values["weight"][:1]), ("weight", values["weight"].to("meta")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="must be"):
            compute(code, "forward", spec, values | {name: wrong})
    with pytest.raises(ValueError, match="bias"):
        compute(code, "forward", spec, values | {"bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="prepared"):
        code.forward(values["images"], torch.zeros(5, dtype=torch.uint8), None, spec)


def test_an_instruction_set_that_is_missing_or_unknown_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    extension.instruction_set.cache_clear()
    try:
        monkeypatch.setenv("ENGINE_ISA", "avx521")
        with pytest.raises(UsageError, match="ENGINE_ISA=avx521: no such instruction set; did you mean"):
            Convolution("naive")
        monkeypatch.setenv("ENGINE_ISA", "avx512")
        monkeypatch.setattr(extension._cpu, "instruction_sets", lambda: [("avx512", False), ("baseline", True)])
        with pytest.raises(UsageError, match="this processor lacks it; it has baseline"):
            Convolution("naive")
    finally:
        monkeypatch.undo()
        extension.instruction_set.cache_clear()


@pytest.mark.parametrize("isa", HERE)
def test_the_environment_forces_an_instruction_set(isa: str) -> None:
    program = "from engine.ops import instruction_set; print(instruction_set())"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"ENGINE_ISA": isa},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.strip() == isa, result.stderr
