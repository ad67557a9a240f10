"""torch.ops.engine on a GPU: gradients, graphs, streams, devices, memory, and torch's compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from installed import EXPECTED, KERNELS, SPECS, geometry, names, tensors
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from engine.interfaces import DIRECTIONS, ConvSpec
from engine.ops import KernelConvolution
from engine.plugins.kernels.compiled import CPU_ONLY

pytestmark = pytest.mark.gpu
ops = torch.ops.engine
TAKEN = {  # a convolution of each kernel that it takes in all directions
    name: SPECS["depthwise" if name == "depthwise" else "plain"]
    for name in EXPECTED
    if name not in (*CPU_ONLY, "native")
}
LARGE_FILTERS = ConvSpec(1, 2, 20, 21, 3, (18, 18), padding=(2, 2))  # of the FFT, which leaves them to cuFFT on a GPU


@pytest.fixture(params=TAKEN)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a kernel."""
    return request.param


def placed(
    device: torch.device, spec: ConvSpec, dtype: torch.dtype = torch.float32, grad: bool = False
) -> list[Tensor]:
    """Return images, weight, bias and the output's gradient on the device."""
    return [tensor.to(device).requires_grad_(grad) for tensor in tensors(spec, dtype, requires_grad=False)]


def all_directions(spec: ConvSpec, where: str, given: Sequence[Tensor]) -> list[Tensor]:
    """Return output, gradient of the images and gradient of the weight."""
    images, weight, bias, gradient = given
    return [
        ops.conv2d(images, weight, bias, *geometry(spec), where),
        ops.conv2d_input(gradient, weight, spec.input_shape, *geometry(spec), where),
        ops.conv2d_weight(gradient, images, spec.weight_shape, *geometry(spec), where),
    ]


@pytest.mark.parametrize("case", [*SPECS, "large filters"])
def test_gradients_of_first_and_second_order(device: torch.device, name: str, case: str) -> None:
    spec = replace(SPECS.get(case, LARGE_FILTERS), device=device.type, dtype=torch.float64)
    where = names(KERNELS[name], spec)
    images, weight, bias, gradient = placed(device, spec, torch.float64, grad=True)

    def forward(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.conv2d(images, weight, bias, *geometry(spec), where)

    assert gradcheck(forward, (images, weight, bias), fast_mode=True)
    assert gradgradcheck(forward, (images, weight, bias), (gradient,), fast_mode=True)


@pytest.mark.parametrize("op", ["conv2d", "conv2d_input", "conv2d_weight"])
def test_opcheck(device: torch.device, name: str, op: str) -> None:
    spec = replace(TAKEN[name], device=device.type)
    images, weight, bias, gradient = placed(device, spec, grad=True)
    given = {
        "conv2d": (images, weight, bias),
        "conv2d_input": (gradient, weight, list(spec.input_shape)),
        "conv2d_weight": (gradient, images, list(spec.weight_shape)),
    }[op]
    arguments = (*given, *geometry(spec), names(KERNELS[name], spec))
    assert set(torch.library.opcheck(getattr(ops, op).default, arguments).values()) == {"SUCCESS"}


def test_autocast_leaves_the_kernels_in_float32(device: torch.device, name: str) -> None:
    spec = replace(TAKEN[name], device=device.type)
    images, weight, bias, _ = placed(device, spec)
    where = names(KERNELS[name], spec)
    expected = ops.conv2d(images, weight, bias, *geometry(spec), where)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(ops.conv2d(images, weight, bias, *geometry(spec), where), expected)


@pytest.mark.parametrize("case", ["taken", "large filters"])
def test_a_graph_computes_new_contents_to_the_same_bits(
    device: torch.device, captured: Callable, name: str, case: str
) -> None:
    spec = replace(LARGE_FILTERS if case == "large filters" else TAKEN[name], device=device.type)
    where = names(KERNELS[name], spec)
    held = placed(device, spec)
    replay = captured(lambda: all_directions(spec, where, held))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for tensor in held:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        results = [result.clone() for result in replay()]
        for result, eager in zip(results, all_directions(spec, where, held), strict=True):
            assert torch.equal(result, eager)


def test_a_call_waits_for_its_own_stream(device: torch.device, name: str) -> None:
    """The images are written at the end of much work on a side stream; read from another they would still be NaN."""
    spec = replace(TAKEN[name], device=device.type)
    where = names(KERNELS[name], spec)
    given = placed(device, spec)
    expected = all_directions(spec, where, given)
    late = [torch.full_like(tensor, torch.nan) for tensor in given]
    on_gpu = device.type == "cuda"
    work = torch.ones(4096 if on_gpu else 8, 4096 if on_gpu else 8, device=device)
    if on_gpu:
        torch.cuda.synchronize()
    side = torch.cuda.Stream() if on_gpu else None
    with torch.cuda.stream(side) if on_gpu else nullcontext():
        for _ in range(20):
            work = work @ work / len(work)
        for tensor, value in zip(late, given, strict=True):
            tensor.copy_(value)
        results = all_directions(spec, where, late)
    if side:
        side.synchronize()
    for result, value in zip(results, expected, strict=True):
        assert torch.equal(result, value)


def test_another_device_is_computed_on_and_the_current_one_stays(gpu: torch.device, name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is no second GPU")
    spec = replace(TAKEN[name], device="cuda")
    where = names(KERNELS[name], spec)
    second = torch.device("cuda", 1)
    results = all_directions(spec, where, placed(second, spec))
    assert torch.cuda.current_device() == 0
    assert {result.device for result in results} == {second}
    for result, expected in zip(results, all_directions(spec, where, placed(gpu, spec)), strict=True):
        torch.testing.assert_close(result.cpu(), expected.cpu(), rtol=1e-4, atol=1e-4)  # another model, perhaps


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_memory_is_torchs_and_given_back(gpu: torch.device, name: str, direction: str) -> None:
    groups = 64 if name == "depthwise" else 1
    spec = ConvSpec(4, 64, 56, 56, 64, (3, 3), padding=(1, 1), groups=groups, channels_last=True, device="cuda")
    kernel = KERNELS[name]
    images, weight, bias, gradient = (
        tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for tensor in placed(gpu, spec)
    )
    call = {
        "forward": lambda: kernel.forward(images, weight, bias, spec),
        "backward_input": lambda: kernel.backward_input(gradient, weight, spec),
        "backward_weight": lambda: kernel.backward_weight(gradient, images, spec),
    }[direction]
    call()  # libraries set themselves up
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    output = result.numel() * result.element_size()
    most = torch.cuda.max_memory_allocated() - before
    workspace = kernel.workspace(spec, direction)
    assert output + workspace <= most <= output + workspace + 2**22, "a block is up to 1 MiB larger than asked for"
    del result
    assert torch.cuda.memory_allocated() == before


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_whole(device: torch.device, name: str, backend: str) -> None:
    spec = replace(TAKEN[name], device=device.type)
    layer = nn.Conv2d(spec.channels, spec.filters, spec.kernel, spec.stride, spec.padding, groups=spec.groups)
    layer = layer.to(device)
    layer._conv_forward = KernelConvolution.of(layer, names(KERNELS[name], spec))
    model = nn.Sequential(layer, nn.ReLU())
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    images = torch.randn(spec.input_shape, device=device)
    gradients = []
    for module in (model, compiled):
        layer.weight.grad = None
        out = module(images)
        out.square().sum().backward()
        gradients.append((out.detach(), layer.weight.grad))
    for eager, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-4, atol=1e-4)
