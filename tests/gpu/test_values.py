"""Every kernel on a GPU, in every direction and type, against torch's convolution in float64 on the CPU.

The shapes, values and bounds are those of the CPU's kernels (tests/kernels), and layers of networks at their own sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from installed import EXPECTED, KERNELS, SPECS
from test_compiled import BOUNDS, DOUBLE, arguments, compute, error, reference, scale, specs, strided
from torch import Tensor

from engine.interfaces import DIRECTIONS, ConvSpec
from engine.plugins.kernels.compiled import CPU_ONLY

pytestmark = pytest.mark.gpu
NAMES = [name for name in BOUNDS if name not in CPU_ONLY]


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan(device: torch.device) -> Iterator[None]:
    """Let results and workspaces begin as NaN, so that what is not written, or read before, shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # cuBLAS would want an environment variable otherwise
    assert torch.empty(3, device=device).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def on(device: torch.device, spec: ConvSpec, dtype: torch.dtype = torch.float32) -> ConvSpec:
    return replace(spec, device=device.type, dtype=dtype)


def there(device: torch.device, values: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: value.to(device, dtype) for name, value in values.items()}


def taken(name: str, spec: ConvSpec) -> list[str]:
    return [direction for direction in DIRECTIONS if not KERNELS[name].refuses(spec, direction)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(spec=specs(), strides=st.booleans())
def test_any_shape(device: torch.device, name: str, spec: ConvSpec, strides: bool) -> None:
    kernel, here = KERNELS[name], on(device, spec)
    directions = taken(name, here)
    assume(directions)
    values = arguments(spec)
    expected, size = reference(spec, values), scale(spec, values)
    for dtype, bound in ((torch.float32, BOUNDS[name]), (torch.float64, DOUBLE)):
        given, here = there(device, values, dtype), on(device, spec, dtype)
        if strides:
            given |= {name: strided(given[name]) for name in ("images", "weight", "gradient")}
        for direction in directions:
            result = compute(kernel, direction, here, given)
            assert (result.shape, result.dtype, result.device.type) == (expected[direction].shape, dtype, device.type)
            assert float((result.double().cpu() - expected[direction]).norm()) / size[direction] <= bound, direction
        if "forward" in directions:
            result = compute(kernel, "forward", here, given)
            prepared = given | {"weight": kernel.prepare(given["weight"], here)}
            assert torch.equal(compute(kernel, "forward", here, prepared), result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("name", NAMES)
def test_small_shapes(device: torch.device, name: str, case: str, dtype: torch.dtype) -> None:
    """Few and small, as `make gpu-test` runs these under compute-sanitizer."""
    spec = on(device, SPECS[case], dtype)
    directions = taken(name, spec)
    assert directions == list(DIRECTIONS) or case not in EXPECTED[name]
    if not directions:
        pytest.skip(f"refused: {KERNELS[name].refuses(spec, 'forward')}")
    values = arguments(spec)
    expected, size = reference(spec, values), scale(spec, values)
    for direction in directions:
        result = compute(KERNELS[name], direction, spec, there(device, values, dtype))
        bound = BOUNDS[name] if dtype == torch.float32 else DOUBLE
        assert float((result.double().cpu() - expected[direction]).norm()) / size[direction] <= bound, direction


@pytest.mark.parametrize("relu", [False, True], ids=["normal", "after a ReLU"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "depthwise"])
def test_errors_stay_within_their_bounds_at_512_channels(device: torch.device, name: str, relu: bool) -> None:
    spec = on(device, ConvSpec(2, 512, 14, 14, 512, (3, 3), padding=(1, 1), channels_last=True))
    values = arguments(spec, relu=relu)
    expected = reference(spec, values)
    for direction in DIRECTIONS:
        result = compute(KERNELS[name], direction, spec, there(device, values))
        assert error(result.cpu(), expected[direction]) <= BOUNDS[name], direction


@pytest.mark.parametrize("name", NAMES)
def test_long_sums_over_pixels_stay_within_the_bounds(device: torch.device, name: str) -> None:
    groups = 3 if name == "depthwise" else 1
    spec = on(device, ConvSpec(8, 3, 224, 224, 3, (3, 3), padding=(1, 1), groups=groups, channels_last=True))
    values = arguments(spec)
    result = compute(KERNELS[name], "backward_weight", spec, there(device, values))
    assert error(result.cpu(), reference(spec, values)["backward_weight"]) <= BOUNDS[name]


LAYERS = {  # of networks, at their own sizes
    "first": ConvSpec(4, 3, 224, 224, 64, (3, 3), padding=(1, 1)),
    "stem": ConvSpec(4, 3, 224, 224, 64, (7, 7), stride=(2, 2), padding=(3, 3)),
    "wide": ConvSpec(1, 64, 224, 224, 64, (3, 3), padding=(1, 1)),
    "middle": ConvSpec(4, 128, 56, 56, 128, (3, 3), padding=(1, 1)),
    "point": ConvSpec(8, 256, 28, 28, 512, (1, 1)),
    "shrinking": ConvSpec(4, 128, 56, 56, 128, (3, 3), stride=(2, 2), padding=(1, 1)),
    "five": ConvSpec(4, 64, 56, 56, 64, (5, 5), padding=(2, 2)),
    "eleven": ConvSpec(2, 64, 56, 56, 64, (11, 11), padding=(5, 5)),
    "thirty-one": ConvSpec(1, 32, 56, 56, 32, (31, 31), padding=(15, 15)),
    "depthwise 7": ConvSpec(4, 96, 56, 56, 96, (7, 7), padding=(3, 3), groups=96),
    "depthwise 31": ConvSpec(1, 128, 56, 56, 128, (31, 31), padding=(15, 15), groups=128),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", NAMES)
def test_layers_of_networks(device: torch.device, name: str, layer: str) -> None:
    spec = on(device, replace(LAYERS[layer], channels_last=True))
    directions = taken(name, spec)
    if not directions:
        pytest.skip(f"refused: {KERNELS[name].refuses(spec, 'forward')}")
    values = arguments(spec)
    expected = reference(spec, values)
    for direction in directions:
        result = compute(KERNELS[name], direction, spec, there(device, values))
        assert error(result.cpu(), expected[direction]) <= BOUNDS[name], direction


@pytest.mark.parametrize("name", NAMES)
def test_the_bits_are_the_same_each_time(device: torch.device, name: str) -> None:
    groups = 24 if name == "depthwise" else 1
    spec = on(device, ConvSpec(8, 24, 57, 61, 24, (3, 3), padding=(1, 1), groups=groups, channels_last=True))
    values = there(device, arguments(spec))
    for direction in DIRECTIONS:
        first, *others = (compute(KERNELS[name], direction, spec, values) for _ in range(5))
        assert not first.isnan().any()
        assert all(torch.equal(first, other) for other in others), direction


@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_more_than_two_to_the_31_numbers(gpu: torch.device, name: str) -> None:
    """A place in such an array is no 32-bit number. Pieces of the arrays, computed alone, show what is right."""
    groups = 16 if name == "depthwise" else 1
    spec = on(gpu, ConvSpec(513, 16, 512, 512, 16, (3, 3), padding=(1, 1), groups=groups, channels_last=True))
    assert torch.Size(spec.input_shape).numel() > 2**31
    kernel = KERNELS[name]
    directions = taken(name, spec)
    if not directions:
        pytest.skip(f"refused: {kernel.refuses(spec, 'forward')}")
    torch.use_deterministic_algorithms(False)  # to fill so much memory with NaN would be a waste of time
    arrays = 3 * 4 * torch.Size(spec.input_shape).numel()
    needed = arrays + max(kernel.workspace(spec, direction) for direction in directions)
    free, _ = torch.cuda.mem_get_info(gpu)
    if needed > 0.9 * free:
        pytest.skip(f"it needs {needed / 2**30:.0f} GiB of the GPU's memory, and {free / 2**30:.0f} are free")
    generator = torch.Generator(gpu).manual_seed(0)
    images, gradient = (
        torch.empty(shape, device=gpu, memory_format=torch.channels_last).normal_(generator=generator)
        for shape in (spec.input_shape, spec.output_shape)
    )
    values = there(gpu, arguments(replace(spec, batch=1))) | {"images": images, "gradient": gradient}
    ends = {"images": images[[0, -1]].cpu(), "gradient": gradient[[0, -1]].cpu()}
    small = {name: value.cpu() for name, value in values.items() if name in ("weight", "bias")}
    expected = reference(replace(spec, batch=2), small | ends)
    for direction in [direction for direction in directions if direction != "backward_weight"]:
        result = compute(kernel, direction, spec, values)[[0, -1]]
        assert error(result.cpu(), expected[direction]) <= BOUNDS[name], direction
    if "backward_weight" in directions:
        total = torch.zeros(spec.weight_shape, dtype=torch.float64, device=gpu)
        for part in range(0, spec.batch, 27):
            piece = {"images": images[part : part + 27], "gradient": gradient[part : part + 27]}
            total += compute(kernel, "backward_weight", replace(spec, batch=27), values | piece).double()
        result = compute(kernel, "backward_weight", spec, values)
        assert error(result.cpu(), total.cpu()) <= 2 * BOUNDS[name]
