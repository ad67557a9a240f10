"""Local response normalization against its definition in float64 and torch's own, for every instruction set."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from engine.errors import UsageError
from engine.normalization import LocalResponseNorm
from engine.ops import cuda_lrn, instruction_sets
from engine.ops.extension import _cpu
from engine.ops.lrn import local_response_norm, run

ops = torch.ops.engine
SETS = [name for name, here in instruction_sets().items() if here]
SIZES = (1, 2, 5, 8, 41, 300)
ALPHA, K = 0.3, 1.5
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# Of images, channels and places that fill vectors and strips exactly, nearly, several times and by no means.
SHAPES = {
    "small": (2, 7, 5, 9), "few places": (3, 96, 2, 3), "one place": (2, 33, 1, 1), "one channel": (2, 1, 4, 4),
    "a line": (2, 20, 17), "volumes": (2, 10, 3, 4, 5), "strips": (1, 6, 31, 33), "many channels": (1, 300, 2, 2),
}  # fmt: skip


def images_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, last: bool = False, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = 2 * torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
    return images.movedim(1, -1).contiguous().movedim(-1, 1) if last else images


def by_definition(x: Tensor, gradient: Tensor, size: int, beta: float) -> tuple[Tensor, Tensor]:
    """Return the result and the gradient with respect to x, in float64, channel by channel."""
    x, gradient = x.double(), gradient.double()
    channels = x.shape[1]
    windows = [range(max(0, c - size // 2), min(channels, c + (size - 1) // 2 + 1)) for c in range(channels)]
    s = torch.stack([K + ALPHA / size * x[:, window].square().sum(1) for window in map(list, windows)], 1)
    g = gradient * x / s ** (beta + 1)
    inside = torch.tensor([[c in window for window in windows] for c in range(channels)], dtype=torch.float64)
    total = torch.einsum("cw,nw...->nc...", inside, g)
    return x / s**beta, gradient / s**beta - 2 * ALPHA * beta / size * x * total


def check(x: Tensor, size: int, beta: float, *ways: dict[str, Any]) -> None:
    """Compare forward and backward, computed in every way, with the definition."""
    gradient = images_of(tuple(x.shape), x.dtype, seed=1)
    expected = by_definition(x, gradient, size, beta)
    for way in ways or ({},):
        for given, right in zip((None, gradient), expected, strict=True):
            found = run(x, given, size, ALPHA, beta, K, **way)
            assert found.dtype == x.dtype
            torch.testing.assert_close(found.double(), right, rtol=TOLERANCE[x.dtype], atol=TOLERANCE[x.dtype])


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_instruction_set_computes_the_definition(shape: tuple[int, ...], last: bool) -> None:
    ways = [{"isa": isa} for isa in SETS]
    for dtype in TOLERANCE:
        x = images_of(shape, dtype, last)
        for size in SIZES:
            check(x, size, 0.75, *ways)
        check(x, 5, 0.6, *ways)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("beta", [0.75, 1.0])
def test_it_is_torchs_own(size: int, beta: float) -> None:
    x = images_of((2, 12, 6, 5), torch.float64).requires_grad_()
    gradient = images_of((2, 12, 6, 5), torch.float64, seed=1)
    found, expected = (f(x, size, ALPHA, beta, K) for f in (local_response_norm, functional.local_response_norm))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, gradient)[0] for y in (found, expected)))


def test_threads_change_no_bit() -> None:
    for last in (False, True):
        x, gradient = images_of((3, 20, 25, 25), last=last), images_of((3, 20, 25, 25), seed=1)
        for given in (None, gradient):
            one, many = (run(x, given, 5, ALPHA, 0.75, K, threads=threads) for threads in (1, 7))
            assert torch.equal(one, many)


def test_results_lie_as_the_images_do_and_others_are_copied() -> None:
    x = images_of((2, 6, 4, 5), last=True)
    assert local_response_norm(x).is_contiguous(memory_format=torch.channels_last)
    assert run(x, x.contiguous(), 5, ALPHA, 0.75, K).is_contiguous(memory_format=torch.channels_last)
    assert local_response_norm(x.contiguous()).is_contiguous()
    for view in (images_of((6, 2, 4, 10)).transpose(0, 1)[..., ::2], images_of((2, 6, 1, 1)).expand(2, 6, 4, 5)):
        assert local_response_norm(view).is_contiguous()
        check(view, 3, 0.75)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True)
    y = local_response_norm(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert y.shape == gradient.shape == shape
    assert torch.autograd.grad(gradient.sum(), x)[0].shape == shape


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("isa", SETS)
def test_nan_and_infinity_reach_their_neighbours_alone(isa: str, last: bool) -> None:
    x = images_of((1, 30, 5, 5), last=last)
    x[0, 10, 2, 2], x[0, 20, 3, 3] = torch.nan, torch.inf
    expected = functional.local_response_norm(x, 5, ALPHA, 0.75, K)
    found = run(x, None, 5, ALPHA, 0.75, K, isa=isa)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found.isnan().sum() == 5 + 1, "five windows hold the NaN; infinity over infinity is one more"
    gradient = run(x, torch.ones_like(x), 5, ALPHA, 0.75, K, isa=isa)
    assert gradient[0, :, 2, 2].isnan().nonzero().flatten().tolist() == list(range(6, 15))
    assert not gradient[0, :, :2].isnan().any()


@pytest.mark.parametrize("isa", SETS)
def test_squares_beyond_all_numbers_give_zero_as_torchs(isa: str) -> None:
    x = torch.full((1, 3, 4, 4), 1e20)
    for given in (None, torch.ones_like(x)):
        assert torch.equal(run(x, given, 5, ALPHA, 0.75, K, isa=isa), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = images_of((2, 8, 3, 3), dtype).requires_grad_()
    y = local_response_norm(x, 5, ALPHA, 0.75, K)
    assert torch.equal(y, local_response_norm(x.float(), 5, ALPHA, 0.75, K).to(dtype))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, run(x.detach().float(), torch.ones(x.shape), 5, ALPHA, 0.75, K).to(dtype))


def test_under_autocast_it_is_float32() -> None:
    x = images_of((2, 8, 3, 3), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = local_response_norm(x)
    assert torch.equal(y, local_response_norm(x.float()))


@pytest.mark.parametrize("size", [1, 4, 5, 20])
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_derivatives_of_first_and_second_order(size: int, beta: float) -> None:
    x = images_of((2, 6, 2, 1), torch.float64).requires_grad_()

    def forward(x: Tensor) -> Tensor:
        return local_response_norm(x, size, ALPHA, beta, K)

    assert gradcheck(forward, (x,))
    assert gradgradcheck(forward, (x,))


def test_the_ops_keep_what_their_schemas_say() -> None:
    x, gradient = images_of((2, 6, 3, 4), last=True).requires_grad_(), images_of((2, 6, 3, 4)).requires_grad_()
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    for op, given, utilities in (
        (ops.lrn, (x,), (*quick, "test_aot_dispatch_dynamic")),
        (ops.lrn, (x.detach().contiguous(),), quick),
        (ops.lrn_backward, (gradient, x), quick),
    ):
        outcome = torch.library.opcheck(op.default, (*given, 5, ALPHA, 0.75, K), test_utils=utilities)
        assert set(outcome.values()) == {"SUCCESS"}


def test_for_the_backward_pass_it_keeps_x_alone() -> None:
    x = images_of((2, 8, 5, 5)).requires_grad_()
    kept: dict[str, list[Tensor]] = {"fused": [], "torch": []}
    for name, tensors in kept.items():
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=tensors: (to.append(t), t)[1], lambda t: t):
            LocalResponseNorm(5, fused=name == "fused")(x)
    assert [t.data_ptr() for t in kept["fused"]] == [x.data_ptr()]
    assert len({t.data_ptr() for t in kept["torch"]}) > 3


def alexnets_kept(fused: bool) -> int:
    """Return the bytes that AlexNet's two normalizations keep at batch 256 beside what precedes them."""
    kept: dict[int, int] = {}
    inputs = [torch.empty(256, *shape, device="meta").requires_grad_() for shape in ((96, 55, 55), (256, 27, 27))]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if all(storage._cdata != x.untyped_storage()._cdata for x in inputs):
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = [LocalResponseNorm(5, fused=fused)(x) for x in inputs]
    assert all(y.device.type == "meta" for y in outputs)
    return sum(kept.values())


def test_alexnet_keeps_gibibytes_less() -> None:
    """torch's keeps squares between zeros, sums, and their power: three tensors like x, one with 4 channels more."""
    assert alexnets_kept(fused=True) == 0
    assert alexnets_kept(fused=False) == 4 * 256 * (55**2 * (3 * 96 + 4) + 27**2 * (3 * 256 + 4))
    assert alexnets_kept(fused=False) / 2**30 > 1.37


def test_the_layer_is_torchs_with_and_without_the_kernel() -> None:
    x = images_of((2, 9, 4, 4))
    expected = nn.LocalResponseNorm(4, ALPHA, 0.75, K)(x)
    for fused in (True, False):
        layer = LocalResponseNorm(4, ALPHA, 0.75, K, fused)
        torch.testing.assert_close(layer(x), expected)
        assert ("fused=False" in repr(layer)) == (not fused)
    other = torch.ones(1, 9, 4, 4, dtype=torch.complex64)
    with pytest.raises(RuntimeError):
        LocalResponseNorm(4)(other)  # torch's own says what it cannot compute
    with pytest.raises(ValueError, match="size is 0"):
        LocalResponseNorm(0)


def test_traced_and_copied_it_is_the_same() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), LocalResponseNorm(5, ALPHA), nn.ReLU())
    x = images_of((2, 3, 6, 6))
    traced = torch.fx.symbolic_trace(layer)
    assert torch.equal(copy.deepcopy(traced)(x), layer(x))


def test_compiled_whole_for_any_batch() -> None:
    layer = LocalResponseNorm(5, ALPHA)
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counted, fullgraph=True, dynamic=True)
    compilations = []
    for batch in (2, 3, 5):
        x = images_of((batch, 3, 6, 6)).requires_grad_()
        found, expected = (torch.autograd.grad(module(x).square().sum(), x)[0] for module in (compiled, layer))
        assert torch.equal(found, expected)
        compilations.append(counted.frame_count)
    assert compilations[0] == compilations[-1], "another batch compiles nothing"


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shape", ["small", "one place", "many channels", "volumes"])
def test_a_gpus_kernels_compute_the_definition(host: ModuleType, shape: str, last: bool) -> None:
    host.shuffle(1)
    for dtype in TOLERANCE:
        x = images_of(SHAPES[shape], dtype, last)
        for size in (4, 5, 300):
            check(x, size, 0.75, {"code": host})
        check(x, 5, 0.6, {"code": host})


class Watch(TorchDispatchMode):
    """Notes the operations that torch is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_without_the_kernels_of_gpus_torch_computes_the_layer_and_the_op_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_lrn, "_extension", lambda: "engine._cuda is not built")
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 6, 4, 4, device="cuda")
        with Watch() as watch:
            assert LocalResponseNorm(5)(x).shape == x.shape
        assert "aten.avg_pool3d.default" in watch.seen
    with pytest.raises(UsageError, match=r"local response normalization on cpu: engine\._cuda is not built"):
        cuda_lrn.run(torch.empty(1), (1,) * 6, (1.0,) * 3, (0, 0, 0))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x: local_response_norm(x.int()), r"floating point \[n, c, ...\] .* not torch.int32 \[2, 3, 4, 4\]"),
        (lambda x: local_response_norm(x[0, 0]), r"not torch.float32 \[4, 4\]"),
        (lambda x: local_response_norm(x, 0), "1 channel or more, not 0"),
        (lambda x: ops.lrn_backward(x.double(), x, 5, 1.0, 0.75, 1.0), "the gradient must be torch.float32"),
        (lambda x: ops.lrn_backward(x[:1], x, 5, 1.0, 0.75, 1.0), r"\[2, 3, 4, 4\] on cpu, not torch.float32 \[1, 3"),
    ],
)
def test_what_a_kernel_cannot_take_is_told(call, told: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=told):
        call(torch.zeros(2, 3, 4, 4))


def test_a_call_past_the_checks_is_an_error_too(host: ModuleType) -> None:
    sizes, constants, nothing = (1, 3, 1, 0, 1, 1), (1.0, 0.75, 1.0), (0,) * 4
    for given, told in (
        (("sse9", 4, sizes, constants, nothing, 1), "no instruction set is called sse9"),
        ((SETS[0], 2, sizes, constants, nothing, 1), "4 or 8 bytes"),
        ((SETS[0], 4, (1, -3, 1, 0, 1, 1), constants, nothing, 1), "a size is negative"),
        ((SETS[0], 4, (1, 3, 1, 0, 3, 1), constants, nothing, 1), "reaches beyond all channels"),
        ((SETS[0], 4, sizes, constants, nothing, 0), "at least 1 thread"),
    ):
        with pytest.raises(ValueError, match=told):
            _cpu.local_response_norm(*given)
    with pytest.raises(ValueError, match="reaches beyond all channels"):
        host.local_response_norm(4, (1, 3, 1, 0, 3, 1), constants, nothing, 0)


def test_forward_mode_is_refused() -> None:
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        local_response_norm(torch.zeros(1, 3, 2, 2))
