"""torch.ops.engine over the CUDA kernels compiled for the host: gradients, fake tensors, compiler, prepared weights."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from installed import SPECS, geometry, tensors
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from engine.convolutions import KernelConvolution
from engine.interfaces import ConvSpec
from engine.ops import CudaConvolution, prepared_weights, register
from engine.plugins.kernels.compiled import CompiledKernel

ops = torch.ops.engine
TAKEN = {"implicit": SPECS["strided"], "winograd2": SPECS["plain"], "fft": SPECS["plain"]}


class OnHost(CompiledKernel):
    """The kernel as the engine has it on a GPU, on tensors of the CPU."""

    def __init__(self, algorithm: str, host: ModuleType) -> None:
        super().__init__(algorithm)
        self.name = f"host-{algorithm}"
        self._on_cpu = CudaConvolution(algorithm, host.Convolution(algorithm), "cpu")


@pytest.fixture(params=TAKEN)
def kernel(request: pytest.FixtureRequest, host: ModuleType) -> OnHost:
    kernel = OnHost(request.param, host)
    register(kernel, replace=True)
    return kernel


def taken(kernel: OnHost) -> tuple[ConvSpec, str]:
    """Return a convolution that the kernel takes in every direction, and its name as the ops want it."""
    return TAKEN[kernel.name.removeprefix("host-")], "/".join([kernel.name] * 3)


def test_gradients_of_first_and_second_order(kernel: OnHost) -> None:
    spec, where = taken(kernel)
    images, weight, bias, gradient = tensors(spec)

    def forward(images, weight, bias):
        return ops.conv2d(images, weight, bias, *geometry(spec), where)

    assert gradcheck(forward, (images, weight, bias), fast_mode=True)
    assert gradgradcheck(forward, (images, weight, bias), (gradient,), fast_mode=True)


@pytest.mark.parametrize("op", ["conv2d", "conv2d_input", "conv2d_weight", "conv2d_prepared"])
def test_opcheck(kernel: OnHost, op: str) -> None:
    spec, where = taken(kernel)
    images, weight, bias, gradient = tensors(spec, torch.float32)
    prepared = kernel.prepare(weight.detach(), spec)
    arguments = {
        "conv2d": (images, weight, bias),
        "conv2d_input": (gradient, weight, list(spec.input_shape)),
        "conv2d_weight": (gradient, images, list(spec.weight_shape)),
        "conv2d_prepared": (images.detach(), prepared, bias.detach(), list(spec.weight_shape)),
    }[op]
    outcome = torch.library.opcheck(getattr(ops, op).default, (*arguments, *geometry(spec), where))
    assert set(outcome.values()) == {"SUCCESS"}


def test_compiled_whole_for_any_batch(kernel: OnHost) -> None:
    spec, where = taken(kernel)
    shape = (spec.channels, spec.filters, spec.kernel, spec.stride, spec.padding, spec.dilation)
    layer, reference = nn.Conv2d(*shape), nn.Conv2d(*shape)
    reference.load_state_dict(layer.state_dict())
    layer._conv_forward = KernelConvolution.of(layer, where)
    compiles = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=compiles, fullgraph=True, dynamic=True)
    for batch in (4, 2, 3):
        images = torch.randn(batch, *spec.input_shape[1:])
        for module in (compiled, reference):
            module.zero_grad()
            module(images).square().sum().backward()
        torch.testing.assert_close(compiled(images), reference(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.weight.grad, reference.weight.grad, rtol=1e-4, atol=1e-4)
    assert compiles.frame_count == 1


def test_an_evaluation_prepares_the_weight_once(kernel: OnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, where = taken(kernel)
    layer = nn.Conv2d(spec.channels, spec.filters, spec.kernel, spec.stride, spec.padding, spec.dilation)
    images = torch.randn(spec.input_shape)
    expected = layer(images)
    layer._conv_forward = KernelConvolution.of(layer, where)
    made = []
    monkeypatch.setattr(
        kernel, "prepare", lambda *given: (made.append(given), CompiledKernel.prepare(kernel, *given))[1]
    )
    with torch.no_grad(), prepared_weights(layer):
        for _ in range(3):
            torch.testing.assert_close(layer(images), expected, rtol=1e-4, atol=1e-4)
    assert len(made) == 1


def test_tensors_that_begin_anywhere_are_read_rightly(kernel: OnHost) -> None:
    """A GPU loads four numbers at once from addresses that 16 divides; a view may begin at any number."""
    spec, where = taken(kernel)
    images, weight, bias, gradient = tensors(spec, torch.float32, requires_grad=False)

    def moved(tensor):
        flat = torch.cat([tensor.new_full((1,), torch.nan), tensor.flatten()])
        view = flat[1:].view(tensor.shape)
        assert view.data_ptr() % 16
        return view

    places = (moved(images), moved(weight), moved(bias))
    expected = ops.conv2d(images, weight, bias, *geometry(spec), where)
    assert torch.equal(ops.conv2d(*places, *geometry(spec), where), expected)
    channels_last = moved(images.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
    assert torch.equal(ops.conv2d(channels_last, weight, bias, *geometry(spec), where), expected)
    to_images = ops.conv2d_input(gradient, weight, spec.input_shape, *geometry(spec), where)
    assert torch.equal(ops.conv2d_input(moved(gradient), weight, spec.input_shape, *geometry(spec), where), to_images)
