"""Every kernel behind torch.ops.engine: what torch's dispatcher, autograd, autocast and compiler expect of an op."""

from __future__ import annotations

import warnings
from itertools import product

import pytest
import torch
from installed import COMPLETE, EXPECTED, KERNELS, SPECS, geometry, names, taken, tensors
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jvp, vmap

from engine.convolutions import KernelConvolution
from engine.interfaces import DIRECTIONS, ConvSpec
from engine.native import NativeKernel
from engine.ops import register

ops = torch.ops.engine
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def first_taken(kernel) -> ConvSpec:
    return next(spec for spec in SPECS.values() if kernel.refuses(spec, "forward") is None)


def test_the_algorithms_take_what_they_are_for():
    assert set(EXPECTED) == set(KERNELS), "a new kernel needs a line in EXPECTED"
    refused = [
        f"{name} refuses {direction} of {spec}: {reason}"
        for name, specs in EXPECTED.items() for spec in sorted(specs) for direction in DIRECTIONS
        if (reason := KERNELS[name].refuses(SPECS[spec], direction))
    ]  # fmt: skip
    if not COMPLETE:
        refused = [line for line in refused if line.startswith(("native", "naive"))]
    assert refused == []


@every_kernel
@every_spec
def test_gradients_of_first_and_second_order(kernel, spec):
    where = names(kernel, spec)
    images, weight, bias, gradient = tensors(spec)

    def forward(images, weight, bias):
        return ops.conv2d(images, weight, bias, *geometry(spec), where)

    assert gradcheck(forward, (images, weight, bias), fast_mode=True)
    assert gradgradcheck(forward, (images, weight, bias), (gradient,), fast_mode=True)


@every_kernel
def test_a_gradients_penalty_is_differentiated_as_torch_does(kernel):
    spec = first_taken(kernel)
    found = []
    for where in (names(kernel, spec), "native/native/native"):
        images, weight, bias, _ = tensors(spec)
        output = ops.conv2d(images, weight, bias, *geometry(spec), where).relu().square().sum()
        to_images, to_weight = torch.autograd.grad(output, (images, weight), create_graph=True)
        (to_images.square().sum() + to_weight.pow(3).sum()).backward()
        found.append((images.grad, weight.grad))
    images, weight, bias, _ = tensors(spec)  # and by torch's own function, which knows nothing of these ops
    output = nn.functional.conv2d(images, weight, bias, *geometry(spec)).relu().square().sum()
    to_images, to_weight = torch.autograd.grad(output, (images, weight), create_graph=True)
    (to_images.square().sum() + to_weight.pow(3).sum()).backward()
    for result in found:
        torch.testing.assert_close(result, (images.grad, weight.grad), rtol=1e-9, atol=1e-9)


def test_forward_mode_is_computed_by_layers_and_refused_by_the_ops():
    layer, expected = nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(3, 4, 3, padding="same")
    expected.load_state_dict(layer.state_dict())
    layer._conv_forward = KernelConvolution.of(layer, "naive/naive/naive")
    images, tangent = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    by_layer, by_torch = jvp(layer, (images,), (tangent,)), jvp(expected, (images,), (tangent,))
    assert by_torch[1].any()
    torch.testing.assert_close(by_layer, by_torch)

    def loss(module):
        return lambda images: module(images).square().sum()

    torch.testing.assert_close(jacfwd(loss(layer))(images[:1]), jacfwd(loss(expected))(images[:1]))
    hessians = [jvp(grad(loss(module)), (images,), (tangent,))[1] for module in (layer, expected)]
    torch.testing.assert_close(*hessians)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(images, tangent)
        torch.testing.assert_close(forward_ad.unpack_dual(layer(dual)).tangent, by_torch[1])

    rest, weight = ((1, 1), (0, 0), (1, 1), 1, "naive/naive/naive"), layer.weight.detach()
    gradient = torch.randn(2, 4, 4, 3)
    for call, given in (
        (lambda t: ops.conv2d(t, weight, None, *rest), images),
        (lambda t: ops.conv2d_prepared(t, weight, None, weight.shape, *rest), images),
        (lambda t: ops.conv2d_input(t, weight, images.shape, *rest), gradient),
        (lambda t: ops.conv2d_weight(t, images, weight.shape, *rest), gradient),
    ):
        with pytest.raises(RuntimeError, match="kernels have no forward-mode derivative"):
            jvp(call, (given,), (given,))


def test_torchs_functional_gradients_are_refused_aloud():
    layer, images = nn.Conv2d(3, 4, 3), torch.randn(2, 1, 3, 6, 5)
    layer._conv_forward = KernelConvolution.of(layer, "naive/naive/naive")
    of_all, of_each = grad(lambda batch: layer(batch).sum()), grad(lambda batches: vmap(layer)(batches).sum())
    for function, given in ((of_all, images[0]), (vmap(of_all), images), (of_each, images)):
        with pytest.raises(RuntimeError, match=r"an autograd\.Function with functorch transforms"):
            function(given)


CHECKS = ("test_schema", "test_faketensor")  # the others ask the dispatcher, which knows no kernel


def op_arguments(kernel, spec: ConvSpec, requires_grad: bool = True) -> dict[str, tuple]:
    images, weight, bias, gradient = tensors(spec, torch.float32, requires_grad)
    prepared = kernel.prepare(weight.detach(), spec)
    rest = (*geometry(spec), names(kernel, spec))
    return {
        "conv2d": (images, weight, bias, *rest),
        "conv2d_input": (gradient, weight, list(spec.input_shape), *rest),
        "conv2d_weight": (gradient, images, list(spec.weight_shape), *rest),
        "conv2d_prepared": (images.detach(), prepared, bias.detach(), list(spec.weight_shape), *rest),
    }


@pytest.mark.parametrize("op", ["conv2d", "conv2d_input", "conv2d_weight", "conv2d_prepared"])
def test_opcheck(op):
    arguments = op_arguments(KERNELS["naive"], SPECS["strided"])[op]
    assert set(torch.library.opcheck(getattr(ops, op).default, arguments).values()) == {"SUCCESS"}


@every_kernel
def test_no_kernel_edits_or_returns_its_arguments_and_all_give_the_shapes_that_fake_tensors_promise(kernel):
    for op, arguments in op_arguments(kernel, first_taken(kernel), requires_grad=False).items():
        outcome = torch.library.opcheck(getattr(ops, op).default, arguments, test_utils=CHECKS)
        assert set(outcome.values()) == {"SUCCESS"}, op


class Halving(NativeKernel):
    """A third party's, written in torch, that takes batches of an even size alone."""

    name = "halving"

    def refuses(self, spec, direction):
        return "the batch is odd" if spec.batch % 2 else None

    def forward(self, images, weight, bias, spec):
        halves = images.chunk(2)
        half = ConvSpec.of(halves[0].shape, weight.shape, *geometry(spec), dtype=spec.dtype)
        return torch.cat([super(Halving, self).forward(some, weight, bias, half) for some in halves])


@pytest.mark.parametrize("name", ["naive", "halving"])
def test_compiled_whole_for_any_batch(name):
    register(Halving())
    spec = SPECS["strided"]
    layer = nn.Conv2d(3, 4, (2, 3), spec.stride, spec.padding, spec.dilation)
    reference = nn.Conv2d(3, 4, (2, 3), spec.stride, spec.padding, spec.dilation)
    reference.load_state_dict(layer.state_dict())
    layer._conv_forward = KernelConvolution.of(layer, f"{name}/{name}/{name}")
    compiles = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=compiles, fullgraph=True, dynamic=True)
    for batch in (4, 2, 6):
        images = torch.randn(batch, *spec.input_shape[1:])
        grads = []
        for module in (compiled, reference):
            module.zero_grad()
            output = module(images)
            output.square().sum().backward()
            grads.append((output.detach(), layer.weight.grad if module is compiled else reference.weight.grad))
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert compiles.frame_count == 1


@every_kernel
def test_autocast_computes_in_float32(kernel):
    spec = first_taken(kernel)
    images, weight, bias, _ = tensors(spec, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = images.to(torch.bfloat16)
        output = ops.conv2d(half, weight, bias, *geometry(spec), names(kernel, spec))
    assert output.dtype == torch.float32
    exact = nn.functional.conv2d(half.double(), weight.double(), bias.double(), *geometry(spec))
    assert float((output - exact).norm() / exact.norm()) < kernel.error
    output.sum().backward()
    assert weight.grad.dtype == images.grad.dtype == torch.float32


LAYOUTS = {
    "NCHW": lambda t: t.contiguous(),
    "NHWC": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every other": lambda t: torch.stack([t, t * 100], -1)[..., 0],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "mirrored": lambda t: t.flip(0).contiguous().flip(0),
}


def is_nhwc(tensor) -> bool:
    """A filter of one channel, which is in both orders, counts as NCHW."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@every_kernel
def test_results_are_in_nhwc_order_if_an_argument_is(kernel):
    spec = next(s for s in (SPECS["plain"], SPECS["depthwise"]) if kernel.refuses(s, "forward") is None)
    where = names(kernel, spec)
    tensors_ = tensors(spec, requires_grad=False)
    images, weight, _, gradient = tensors_
    to_images, to_weight = (
        torch.nn.grad.conv2d_input(spec.input_shape, weight, gradient, *geometry(spec)),
        torch.nn.grad.conv2d_weight(images, spec.weight_shape, gradient, *geometry(spec)),
    )
    forward = nn.functional.conv2d(images, weight, None, *geometry(spec))
    for one, other in product(LAYOUTS, LAYOUTS):
        x, w, g = LAYOUTS[one](images), LAYOUTS[other](weight), LAYOUTS[one](gradient)
        results = (
            (ops.conv2d(x, w, None, *geometry(spec), where), forward, (x, w)),
            (ops.conv2d_input(g, w, spec.input_shape, *geometry(spec), where), to_images, (g, w)),
            (ops.conv2d_weight(g, LAYOUTS[other](images), spec.weight_shape, *geometry(spec), where), to_weight,
             (g, LAYOUTS[other](images))),
        )  # fmt: skip
        for result, expected, arguments in results:
            torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
            nhwc = any(map(is_nhwc, arguments))
            assert result.is_contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)


@every_kernel
@pytest.mark.parametrize("channels_last", [False, True])
def test_an_empty_batch_gives_empty_images_and_no_gradient(kernel, channels_last):
    spec = SPECS["plain"]
    images, weight, bias, _ = tensors(spec)
    if channels_last:
        weight = weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    nothing = images[:0].detach().requires_grad_()
    where = "/".join([kernel.name] * 3)
    with warnings.catch_warnings(action="error"):  # it is not refused: there is nothing to compute
        output = ops.conv2d(nothing, weight, bias, *geometry(spec), where)
        output.sum().backward()
    assert output.shape == (0, *spec.output_shape[1:])
    assert nothing.grad.shape == nothing.shape
    assert weight.grad.shape == weight.shape
    assert not weight.grad.any()
    assert not bias.grad.any()


@every_kernel
def test_a_prepared_weight_takes_an_empty_batch(kernel):
    spec = first_taken(kernel)
    images, weight, _, _ = tensors(spec, torch.float32, requires_grad=False)
    prepared = kernel.prepare(weight, spec)
    output = ops.conv2d_prepared(images[:0], prepared, None, spec.weight_shape, *geometry(spec), names(kernel, spec))
    assert output.shape == (0, *spec.output_shape[1:])


def test_a_refused_batch_is_computed_by_torch_with_a_warning():
    register(Halving())
    spec = SPECS["plain"]
    images, weight, bias, gradient = tensors(spec)
    where = "halving/halving/halving"
    for batch in (2, 1):  # planned for 2
        some = images[:batch].detach().requires_grad_()
        if batch == 1:
            with pytest.warns(UserWarning, match=r"halving gives way to native in the forward .*: the batch is odd"):
                output = ops.conv2d(some, weight, bias, *geometry(spec), where)
            with pytest.warns(UserWarning, match="gives way to native in the backward"):
                found = torch.autograd.grad(output, (some, weight), gradient[:1])
        else:
            output = ops.conv2d(some, weight, bias, *geometry(spec), where)
            found = torch.autograd.grad(output, (some, weight), gradient)
        expected = nn.functional.conv2d(some, weight, bias, *geometry(spec))
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(found, torch.autograd.grad(expected, (some, weight), gradient[:batch]))


@every_kernel
@every_spec
def test_workspace_and_waste_are_told(kernel, spec):
    for direction in taken(kernel, spec):
        assert kernel.workspace(spec, direction) >= 0
    assert kernel.waste(spec) >= 0
