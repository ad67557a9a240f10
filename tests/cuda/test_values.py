"""Every CUDA algorithm and direction against torch's convolution in float64, in any order of threads and blocks.

The very same sources as for a GPU, compiled for the host; the shapes, values and bounds are those of the CPU's kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from building import CONVOLUTIONS
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_compiled import BOUNDS, DOUBLE, TAKEN, arguments, compute, error, reference, scale, specs, strided

from engine.interfaces import DIRECTIONS, ConvSpec
from engine.ops import Convolution, CudaConvolution

ALGORITHMS = [path.stem for path in CONVOLUTIONS]


def code_of(host: ModuleType, algorithm: str) -> CudaConvolution:
    return CudaConvolution(algorithm, host.Convolution(algorithm), "cpu")


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan(host: ModuleType) -> Iterator[None]:
    """Let results and workspaces begin as NaN, so that what is not written, or read before, shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    assert torch.empty(8, dtype=torch.uint8).view(torch.float32).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    host.shuffle(0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(spec=specs(), strides=st.booleans(), seed=st.integers(1, 2**32))
def test_any_shape(host: ModuleType, algorithm: str, spec: ConvSpec, strides: bool, seed: int) -> None:
    code = code_of(host, algorithm)
    taken = [direction for direction in DIRECTIONS if not code.refuses(spec, direction)]
    assume(taken)
    values = arguments(spec)
    expected, size = reference(spec, values), scale(spec, values)
    if strides:
        values |= {name: strided(values[name]) for name in ("images", "weight", "gradient")}
    wide = replace(spec, dtype=torch.float64)
    doubles = {name: value.double() for name, value in values.items()}
    for direction in taken:
        results = []
        for host_seed in (0, seed):
            host.shuffle(host_seed)
            results.append(compute(code, direction, spec, values))
        assert torch.equal(*results), f"{direction}: the bits depend on the order of threads or blocks"
        wide_result = compute(code, direction, wide, doubles)
        for result, bound in ((results[0], BOUNDS[algorithm]), (wide_result, DOUBLE)):
            assert result.shape == expected[direction].shape
            assert float((result.double() - expected[direction]).norm()) / size[direction] <= bound, direction
        if direction == "forward":
            prepared = code.prepare(values["weight"], spec)
            assert torch.equal(compute(code, direction, spec, values | {"weight": prepared}), results[0])
            plain = code.forward(values["images"], values["weight"], None, spec)
            biased = plain + values["bias"].view(1, -1, 1, 1)
            assert float((biased.double() - expected[direction]).norm()) / size[direction] <= BOUNDS[algorithm]


@st.composite
def any_specs(draw: st.DrawFn) -> ConvSpec:
    """Shapes of which the special algorithms refuse many, for many reasons."""
    groups = draw(st.sampled_from([1, 1, 2, 6]))
    kernel = draw(st.tuples(*[st.sampled_from([1, 2, 3, 3, 5, 9, 40])] * 2))
    channels, filters = (groups * draw(st.integers(1, 3)) for _ in range(2))
    height, width = (draw(st.integers(80, 200)) for _ in range(2))
    stride, dilation = (draw(st.tuples(*[st.integers(1, 2)] * 2)) for _ in range(2))
    padding = (draw(st.integers(0, kernel[0] + 1)), draw(st.integers(0, kernel[1] + 1)))
    return ConvSpec(1, channels, height, width, filters, kernel, stride, padding, dilation, groups)


def refused_besides(algorithm: str, spec: ConvSpec) -> str | None:
    """Return why a GPU refuses what the CPU takes: filters of one row or column, or too large for our tiles."""
    if algorithm.startswith("winograd") and spec.kernel in ((1, 3), (3, 1)):
        return "the filter is not 3x3"
    reach = max((k - 1) * d + 1 for k, d in zip(spec.kernel, spec.dilation, strict=True))
    return "the filter, with its dilation, is larger than 17" if algorithm == "fft" and reach > 17 else None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=100, deadline=None)
@given(spec=specs() | any_specs())
def test_what_is_refused_is_what_the_cpu_refuses_and_no_more(host: ModuleType, algorithm: str, spec: ConvSpec) -> None:
    for direction in DIRECTIONS:
        reason, besides = Convolution(algorithm).refuses(spec, direction), refused_besides(algorithm, spec)
        if reason:
            reason = reason.replace("3x3, 1x3 or 3x1", "3x3")
        assert code_of(host, algorithm).refuses(spec, direction) in {reason or besides, besides or reason}, direction


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_takes_what_it_is_there_for(host: ModuleType, algorithm: str, direction: str) -> None:
    channels, filters, kernel, stride, dilation, groups = TAKEN[algorithm.replace("winograd4", "winograd2")]
    spec = ConvSpec(2, channels, 20, 18, filters, kernel, stride, (1, 1), dilation, groups)
    assert code_of(host, algorithm).refuses(spec, direction) is None


@pytest.mark.parametrize("relu", [False, True], ids=["normal", "after a ReLU"])
@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "depthwise"])
def test_errors_stay_within_their_bounds_at_512_channels(host: ModuleType, algorithm: str, relu: bool) -> None:
    spec = ConvSpec(1, 512, 14, 9, 512, (3, 3), padding=(1, 1), channels_last=True)
    values = arguments(spec, relu=relu)
    expected = reference(spec, values)
    for direction in DIRECTIONS:
        result = compute(code_of(host, algorithm), direction, spec, values)
        assert error(result, expected[direction]) <= BOUNDS[algorithm], direction


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_long_sums_over_pixels_stay_within_the_bounds(host: ModuleType, algorithm: str) -> None:
    groups = 3 if algorithm == "depthwise" else 1
    spec = ConvSpec(4, 3, 150, 160, 3, (3, 3), padding=(1, 1), groups=groups, channels_last=True)
    values = arguments(spec)
    result = compute(code_of(host, algorithm), "backward_weight", spec, values)
    assert error(result, reference(spec, values)["backward_weight"]) <= BOUNDS[algorithm]


LAYERS = {  # of networks: few channels and many pixels, a stride, points, large filters, one filter for each channel
    "first": ConvSpec(1, 3, 64, 64, 64, (3, 3), padding=(1, 1)),
    "stem": ConvSpec(1, 3, 64, 64, 32, (7, 7), stride=(2, 2), padding=(3, 3)),
    "middle": ConvSpec(1, 64, 56, 56, 64, (3, 3), padding=(1, 1)),
    "point": ConvSpec(2, 128, 14, 14, 256, (1, 1)),
    "shrinking": ConvSpec(2, 64, 28, 28, 128, (3, 3), stride=(2, 2), padding=(1, 1)),
    "large": ConvSpec(1, 32, 28, 28, 32, (11, 11), padding=(5, 5)),
    "depthwise": ConvSpec(2, 96, 28, 28, 96, (7, 7), padding=(3, 3), groups=96),
    "larger": ConvSpec(1, 24, 31, 33, 24, (31, 31), padding=(15, 15), groups=24),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_layers_of_networks(host: ModuleType, algorithm: str, layer: str) -> None:
    spec, code = replace(LAYERS[layer], channels_last=True), code_of(host, algorithm)
    taken = [direction for direction in DIRECTIONS if not code.refuses(spec, direction)]
    if not taken:
        pytest.skip(f"refused: {code.refuses(spec, 'forward')}")
    values = arguments(spec)
    expected = reference(spec, values)
    for direction in taken:
        assert error(compute(code, direction, spec, values), expected[direction]) <= BOUNDS[algorithm], direction


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_order_of_threads_and_blocks_changes_no_bit(host: ModuleType, algorithm: str) -> None:
    groups = 24 if algorithm == "depthwise" else 1
    channels = 24 if algorithm == "depthwise" else 20
    for spec in (
        ConvSpec(2, channels, 33, 29, channels, (3, 3), padding=(1, 1), groups=groups),
        ConvSpec(1, channels, 9, 40, 2 * channels, (3, 3), padding=(0, 2), groups=groups),
    ):
        code, values = code_of(host, algorithm), arguments(spec)
        for direction in [d for d in DIRECTIONS if not code.refuses(spec, d)]:
            results = []
            for seed in range(6):
                host.shuffle(seed)
                results.append(compute(code, direction, spec, values))
            assert not results[0].isnan().any()
            assert all(torch.equal(results[0], result) for result in results[1:]), direction


def test_a_call_that_no_gpu_takes_is_an_error(host: ModuleType) -> None:
    code = code_of(host, "implicit")._code
    sizes = ConvSpec(1, 3, 8, 8, 4, (3, 3)).sizes
    with pytest.raises(ValueError, match="a direction is 0, 1 or 2"):
        code.refuses(sizes, 3)
    with pytest.raises(ValueError, match="an element has 4 or 8 bytes"):
        code.workspace(sizes, 0, 2, False)
    with pytest.raises(ValueError, match="no algorithm is called naive"):
        host.Convolution("naive")
