"""check_kernel names the promise that a broken kernel breaks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from engine import ConvSpec, Kernels
from engine.interfaces import ConvKernel
from engine.ops import registered
from engine.testing import BrokenPromise, check_kernel
from engine.testing.kernel import TINY, _arguments, _loops, _reference, relative_error

FEW = (
    ConvSpec(2, 3, 8, 8, 4, (3, 3), padding=(1, 1)),
    ConvSpec(2, 4, 7, 9, 6, (3, 3), stride=(2, 2), padding=(1, 1)),
    ConvSpec(2, 4, 9, 9, 4, (3, 3), dilation=(2, 2), groups=2),
)


class Sound(ConvKernel):
    name = "sound"

    def forward(self, images, weight, bias, spec):
        return nn.functional.conv2d(images, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups)

    def backward_input(self, gradient, weight, spec):
        return torch.nn.grad.conv2d_input(
            spec.input_shape, weight, gradient, spec.stride, spec.padding, spec.dilation, spec.groups
        )

    def backward_weight(self, gradient, images, spec):
        return torch.nn.grad.conv2d_weight(
            images, spec.weight_shape, gradient, spec.stride, spec.padding, spec.dilation, spec.groups
        )


class FlipsTheFilter(Sound):
    def forward(self, images, weight, bias, spec):
        return super().forward(images, weight.flip(2, 3), bias, spec)


class FlipsTheGradient(Sound):
    def backward_input(self, gradient, weight, spec):
        return super().backward_input(gradient, weight.flip(2, 3), spec)


class AveragesWeightGradients(Sound):
    def backward_weight(self, gradient, images, spec):
        return super().backward_weight(gradient, images, spec) / max(spec.batch, 1)


class IgnoresGroups(Sound):
    def forward(self, images, weight, bias, spec):
        return super().forward(images, weight[:, :1].expand_as(weight), bias, spec)


class IgnoresStrides(Sound):
    def forward(self, images, weight, bias, spec):
        dense = torch.as_strided(images, images.shape, torch.empty(images.shape, device="meta").stride())
        return super().forward(dense, weight, bias, spec)


class IgnoresStridesOfViews(Sound):
    def backward_weight(self, gradient, images, spec):
        if images.stride(3) == 2:
            images = torch.as_strided(images, images.shape, torch.empty(images.shape, device="meta").stride())
        return super().backward_weight(gradient, images, spec)


class IgnoresOrder(Sound):
    """Takes NHWC memory for NCHW."""

    def backward_weight(self, gradient, images, spec):
        if spec.channels_last:
            images = images.permute(0, 2, 3, 1).reshape(images.shape)
        return super().backward_weight(gradient, images, spec)


class HalfPrecision(Sound):
    def forward(self, images, weight, bias, spec):
        bias = None if bias is None else bias.bfloat16()
        return super().forward(images.bfloat16(), weight.bfloat16(), bias, spec).to(spec.dtype)


class SinglePrecision(Sound):
    """Takes float64 and computes in float32."""

    def backward_input(self, gradient, weight, spec):
        return super().backward_input(gradient.float(), weight.float(), spec).to(spec.dtype)


class AddsTheBiasTwice(Sound):
    def forward(self, images, weight, bias, spec):
        return super().forward(images, weight, None if bias is None else 2 * bias, spec)


class ForgetsTheBiasOfPreparedWeights(Sound):
    def prepare(self, weight, spec):
        return weight.flatten()

    def forward(self, images, weight, bias, spec):
        if weight.dim() == 1:
            weight, bias = weight.view(spec.weight_shape), None
        return super().forward(images, weight, bias, spec)


class ReusesItsOutput(Sound):
    """Returns the same memory at every call of one shape."""

    def __init__(self):
        self.outputs = {}

    def forward(self, images, weight, bias, spec):
        result = super().forward(images, weight, bias, spec)
        return self.outputs.setdefault(spec, torch.empty_like(result)).copy_(result)


class ReturnsDoubles(Sound):
    def forward(self, images, weight, bias, spec):
        return super().forward(images.double(), weight.double(), None if bias is None else bias.double(), spec)


class TransposesTheOutput(Sound):
    def forward(self, images, weight, bias, spec):
        return super().forward(images, weight, bias, spec).transpose(0, 1)


class FailsOnLargeFilters(Sound):
    def forward(self, images, weight, bias, spec):
        if spec.kernel[0] > 3:
            raise RuntimeError("no such tile")
        return super().forward(images, weight, bias, spec)


class RefusesEverything(Sound):
    def refuses(self, spec, direction):
        return "not today"


class RefusesWithoutReason(Sound):
    def refuses(self, spec, direction):
        return spec.groups > 1


class RefusesTooLate(Sound):
    """Says nothing of the direction that it has not."""

    def backward_weight(self, gradient, images, spec):
        raise NotImplementedError("only forward and backward_input")


class PreparesWrongly(Sound):
    def prepare(self, weight, spec):
        return weight.transpose(2, 3) if spec.kernel[0] == spec.kernel[1] else weight


class EditsTheWeight(Sound):
    def backward_input(self, gradient, weight, spec):
        result = super().backward_input(gradient, weight, spec)
        weight.mul_(1.5)
        return result


class WorkspaceInMegabytes(Sound):
    def workspace(self, spec, direction):
        return 1.5


class NegativeWorkspace(Sound):
    def workspace(self, spec, direction):
        return -1


class EndlessWaste(Sound):
    def waste(self, spec):
        return float("inf")


class NamedLikeAList(Sound):
    name = "sound/fast"


class ClaimsNoError(Sound):
    error = 0.0


class ClaimsTooLittleError(HalfPrecision):
    error = 1e-5


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (FlipsTheFilter, "forward agrees with float64 convolution"),
        (FlipsTheGradient, "backward_input agrees with float64 convolution"),
        (AveragesWeightGradients, "backward_weight agrees with float64 convolution"),
        (IgnoresGroups, "forward agrees with float64 convolution"),
        (IgnoresStrides, "forward in NHWC order agrees with float64 convolution"),
        (IgnoresStridesOfViews, "backward_weight of strided views agrees with float64 convolution"),
        (IgnoresOrder, "backward_weight in NHWC order agrees with float64 convolution"),
        (AddsTheBiasTwice, "forward with a bias agrees with float64 convolution"),
        (ForgetsTheBiasOfPreparedWeights, "forward with a prepared weight and a bias agrees with float64"),
        (ReusesItsOutput, "forward agrees with float64 convolution"),
        (SinglePrecision, "backward_input agrees with float64 convolution to a relative L2 error of 1e-12"),
        (ClaimsTooLittleError, "forward agrees with float64 convolution to a relative L2 error of 1e-05"),
        (ClaimsNoError, "error is the relative L2 error of float32, a number above 0; it is 0.0"),
        (NamedLikeAList, "a name is some letters without a slash"),
        (HalfPrecision, "forward agrees with float64 convolution to a relative L2 error of 1e-06"),
        (ReturnsDoubles, "forward has the right shape and type; it is torch.float64"),
        (TransposesTheOutput, "forward has the right shape and type"),
        (FailsOnLargeFilters, r"what refuses\(\) does not refuse is computed .*no such tile"),
        (RefusesEverything, "a kernel computes something"),
        (RefusesWithoutReason, r"refuses\(\) returns None or says why; it returns False"),
        (RefusesTooLate, r"what refuses\(\) does not refuse is computed .*only forward and backward_input"),
        (PreparesWrongly, "forward with a prepared weight agrees with float64 convolution"),
        (EditsTheWeight, "never edits its arguments"),
        (WorkspaceInMegabytes, r"workspace\(\) is a number of bytes; it returns 1.5"),
        (NegativeWorkspace, r"workspace\(\) is a number of bytes; it returns -1"),
        (EndlessWaste, r"waste\(\) is a number of multiplications per useful one; it returns inf"),
    ],
)
def test_broken_kernel_is_named(broken, promise):
    with pytest.raises(BrokenPromise, match=f"^{broken.__name__} breaks a promise: .*{promise}"):
        check_kernel(broken())


def test_sound_kernel_passes():
    check_kernel(Sound())
    assert registered("sound").error == Sound.error


def test_what_a_kernel_refuses_is_not_asked_of_it():
    class SmallFilters(FailsOnLargeFilters):
        def refuses(self, spec, direction):
            return "filters up to 3" if spec.kernel[0] > 3 else None

    class ForwardOnly(RefusesTooLate):
        def refuses(self, spec, direction):
            return "it has no such gradient" if direction == "backward_weight" else None

    check_kernel(SmallFilters())
    check_kernel(ForwardOnly())


def test_an_empty_batch_does_not_reach_a_kernel():
    class NeedsImages(Sound):
        def refuses(self, spec, direction):
            return None if 8 // spec.batch else "the batch is larger than 8"

    check_kernel(NeedsImages())


@dataclass
class Some(Kernels):
    """A sound kernel, and whatever candidates it is given."""

    others: Sequence[ConvKernel] = ()

    def kernel(self):
        return Sound()

    def candidates(self):
        return [*super().candidates(), *self.others]


def test_every_kernel_of_a_choice_is_checked():
    check_kernel(Some())

    class Other(FlipsTheGradient):
        name = "other"

    with pytest.raises(BrokenPromise, match=r"^Some's kernel other breaks a promise: backward_input agrees"):
        check_kernel(Some(others=[Other()]))


def test_a_looser_tolerance_and_other_specs_can_be_asked_for():
    check_kernel(HalfPrecision(), specs=FEW, tolerance=2e-2)
    with pytest.raises(BrokenPromise):
        check_kernel(HalfPrecision(), specs=FEW, tolerance=2e-4)


def test_the_two_references_agree():
    for one, other in zip(_reference(TINY), _loops(TINY), strict=True):
        assert relative_error(one, other) < 1e-14


def test_the_loops_give_a_result_computed_by_hand():
    # A 1x3 image [1, 2, 3] under the filter [10, 1] gives [12, 23]; cross-correlation, so the filter is not flipped.
    spec = ConvSpec(1, 1, 1, 3, 1, (1, 2))
    images, weight, gradient = _arguments(spec)
    values = images.flatten().double().tolist(), weight.flatten().double().tolist()
    expected = [sum(a * b for a, b in zip(values[0][i:], values[1], strict=False)) for i in range(2)]
    assert _loops(spec)[0].flatten().tolist() == pytest.approx(expected)
    products = itertools.product(gradient.flatten().tolist(), values[1])
    first, second, third, fourth = (a * b for a, b in products)
    assert _loops(spec)[1].flatten().tolist() == pytest.approx([first, second + third, fourth])
