"""What surrounds a CUDA kernel: checks of its arguments, memory, stream and device, and what is said without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from installed import KERNELS
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.errors import UsageError
from engine.interfaces import DIRECTIONS, ConvSpec
from engine.ops import CudaConvolution, cuda
from engine.plugins.kernels.compiled import CompiledKernel, FFTKernel

SPEC = ConvSpec(2, 3, 8, 8, 4, (3, 3))
ON_GPU = replace(SPEC, device="cuda")
NOT_BUILT = "engine._cuda is not built (ENGINE_CUDA=1 pip install -e .)"


class Code:
    """Stands in for the compiled class: notes what it is called with, and leaves the results as they are."""

    def __init__(self, refused: str | None = None) -> None:
        self.refused, self.prepares, self.runs = refused, [], []

    def refuses(self, sizes, direction):
        return self.refused

    def workspace(self, sizes, direction, size, prepared):
        return 1000 * size

    def prepared_bytes(self, sizes, size):
        return 100 * size

    def prepare(self, *arguments):
        self.prepares.append(arguments)

    def run(self, *arguments):
        self.runs.append(arguments)


def moved(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor in NHWC order that begins at an address which 16 does not divide."""
    dense = torch.zeros(torch.Size(shape).numel() + 1, dtype=dtype)[1:]
    assert dense.data_ptr() % 16
    n, c, h, w = shape
    return dense.view(n, h, w, c).permute(0, 3, 1, 2)


def arguments(spec: ConvSpec = SPEC) -> dict[str, tuple[torch.Tensor, ...]]:
    images, weight, gradient = (
        moved(*shape, dtype=spec.dtype) for shape in (spec.input_shape, spec.weight_shape, spec.output_shape)
    )
    bias = moved(1, spec.filters, 1, 1, dtype=spec.dtype).flatten()
    return {
        "forward": (images, weight, bias),
        "backward_input": (gradient, weight),
        "backward_weight": (gradient, images),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_code_gets_sizes_addresses_and_a_stream(dtype):
    spec, code = replace(SPEC, dtype=dtype), Code()
    convolution = CudaConvolution("implicit", code, "cpu")
    size = torch.finfo(dtype).bits // 8
    shapes = (spec.output_shape, spec.input_shape, spec.weight_shape)
    for number, direction in enumerate(DIRECTIONS):
        result = getattr(convolution, direction)(*arguments(spec)[direction], spec)
        assert (result.shape, result.dtype) == (shapes[number], dtype)
        assert result.is_contiguous(memory_format=torch.channels_last)
        *sizes, left, right, bias, prepared, out, workspace, stream = code.runs.pop()
        assert sizes == [spec.sizes, number, size]
        assert left % 16 == right % 16 == bias % 16 == workspace % 256 == stream == 0
        assert left != right
        assert workspace
        assert (out, prepared, bool(bias)) == (result.data_ptr(), 0, direction == "forward")
        assert convolution.workspace(spec, direction) == 1000 * size


def test_a_prepared_weight_is_aligned_and_checked():
    code = Code()
    convolution = CudaConvolution("winograd2", code, "cpu")
    images, weight, _ = arguments()["forward"]
    prepared = convolution.prepare(weight, SPEC)
    assert (prepared.dtype, prepared.numel(), prepared.data_ptr() % 16) == (torch.uint8, 400, 0)
    ((sizes, size, source, target, stream),) = code.prepares
    assert (sizes, size, target, stream) == (SPEC.sizes, 4, prepared.data_ptr(), 0)
    assert source not in (0, target)
    convolution.forward(images, prepared, None, SPEC)
    assert code.runs[0][4:7] == (0, 0, prepared.data_ptr()), "neither weight nor bias"
    with pytest.raises(ValueError, match="must be dense, on the CPU and aligned to 16 bytes"):
        convolution.forward(images, torch.cat([prepared, prepared])[1:401], None, SPEC)
    with pytest.raises(ValueError, match="prepared for another shape"):
        convolution.forward(images, prepared[:-1], None, SPEC)


def test_arrays_that_are_not_what_the_spec_says_are_refused():
    convolution = CudaConvolution("implicit", Code(), "cpu")
    images, weight, bias = arguments()["forward"]
    for wrong in (
        (images.to("meta"), weight, bias), (images, weight.to("meta"), bias), (images, weight, bias.to("meta")),
        (images[:1], weight, bias), (images, weight.double(), bias), (images, weight, bias[:3]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"must be .* on the CPU, not"):
            convolution.forward(*wrong, SPEC)
    with pytest.raises(ValueError, match=r"a tensor must be .* on a GPU, not .* on cpu"):
        CudaConvolution("implicit", Code()).forward(images, weight, bias, ON_GPU)


def test_each_computes_where_it_can():
    assert CudaConvolution("implicit", Code()).refuses(SPEC, "forward") == "it computes on a GPU only"
    assert CudaConvolution("implicit", Code()).refuses(ON_GPU, "forward") is None
    half = replace(ON_GPU, dtype=torch.bfloat16)
    assert "float32 and float64, not bfloat16" in CudaConvolution("implicit", Code()).refuses(half, "forward")
    assert CudaConvolution("implicit", Code("it is odd")).refuses(ON_GPU, "forward") == "it is odd"
    for name in ("naive", "winograd6"):
        assert KERNELS[name].refuses(ON_GPU, "forward") == "it computes on the CPU only"
    assert KERNELS["implicit"].refuses(replace(SPEC, device="mps"), "forward") == "it computes on the CPU only"


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(cuda, "_extension", lambda: NOT_BUILT)
    for name in ("im2col", "implicit", "winograd2", "winograd4", "depthwise"):
        assert CompiledKernel(name).refuses(ON_GPU, "forward") == NOT_BUILT
    kernel = FFTKernel()
    kernel._large = CudaConvolution("spectral", Code())
    assert kernel.refuses(ON_GPU, "forward") == NOT_BUILT, "whether it is built must not choose the algorithm"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'engine._cuda'"), NOT_BUILT),
        (ImportError("undefined symbol"), "engine._cuda cannot be loaded (undefined symbol); build it again "),
    ],
)
def test_an_extension_that_does_not_load_is_said(monkeypatch, error, reason):
    class Finder:
        def find_spec(self, name, *_):
            if name == "engine._cuda":
                raise error

    monkeypatch.delitem(sys.modules, "engine._cuda", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    cuda._extension.cache_clear()
    try:
        assert CudaConvolution("implicit").refuses(ON_GPU, "forward").startswith(reason)
    finally:
        cuda._extension.cache_clear()


def test_filters_too_large_for_our_tiles_are_left_to_cufft():
    kernel = FFTKernel()
    tiles, large = Code("the filter is larger than 17 x 17"), Code()
    kernel._on_gpu, kernel._large = CudaConvolution("fft", tiles), CudaConvolution("spectral", large)
    assert kernel.refuses(ON_GPU, "forward") is None
    assert kernel._code(ON_GPU, "forward") is kernel._large
    assert kernel._code(SPEC, "forward") is kernel._on_cpu, "on the CPU tiles take all that they take"
    tiles.refused = None
    assert kernel._code(ON_GPU, "backward_weight") is kernel._on_gpu
    tiles.refused, large.refused = "the filter is larger than 17 x 17", "it needs too much memory"
    assert kernel.refuses(ON_GPU, "forward") == "the filter is larger than 17 x 17"


@pytest.fixture
def gpus(monkeypatch) -> SimpleNamespace:
    """Stand in for torch's devices and streams: the current device, and a stream of each that is its number x 16."""
    state = SimpleNamespace(current=0, seen=[])

    @contextmanager
    def device_of(tensor) -> Iterator[None]:
        before, state.current = state.current, tensor.device.index
        try:
            yield
        finally:
            state.current = before

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=16 * device.index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    return state


def on(index: int) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))


def test_a_launch_is_on_the_tensors_device_and_its_current_stream(gpus):
    cuda._launch(lambda *given: gpus.seen.append((gpus.current, given)), on(3), "sizes", 4)
    assert gpus.seen == [(3, ("sizes", 4, 48))]
    assert gpus.current == 0


def test_a_gpu_that_was_not_compiled_for_is_said(gpus):
    def fail(*_):
        raise RuntimeError("CUDA: no kernel image is available for execution on the device")

    with pytest.raises(
        UsageError, match=r"without code for this GPU \(Tesla T4\): .* ENGINE_CUDA_ARCHS=75 ENGINE_CUDA=1"
    ):
        cuda._launch(fail, on(0))
    with pytest.raises(RuntimeError, match="an illegal address"):
        cuda._launch(lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA: an illegal address")), on(0))


def test_fake_tensors_stay_on_their_gpu():
    """The ops' shapes and devices as torch.compile sees them, of a second GPU that is not there."""
    rest = ((1, 1), (0, 0), (1, 1), 1, "implicit/implicit/implicit")
    with FakeTensorMode():
        images, weight, gradient = (
            torch.empty(shape, device="cuda:1") for shape in (SPEC.input_shape, SPEC.weight_shape, SPEC.output_shape)
        )
        results = (
            torch.ops.engine.conv2d(images, weight, None, *rest),
            torch.ops.engine.conv2d_input(gradient, weight, SPEC.input_shape, *rest),
            torch.ops.engine.conv2d_weight(gradient, images, SPEC.weight_shape, *rest),
        )
    assert [tuple(r.shape) for r in results] == [SPEC.output_shape, SPEC.input_shape, SPEC.weight_shape]
    assert {r.device for r in results} == {torch.device("cuda", 1)}
