"""check_kernel names the promise that a broken kernel breaks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from engine import ConvSpec
from engine.interfaces import ConvKernel, KernelChooser, KernelRow
from engine.testing import BrokenPromise, check_kernel
from engine.testing.kernel import TINY, _arguments, _loops, _reference, relative_error

FEW = (
    ConvSpec(2, 3, 8, 8, 4, (3, 3), padding=(1, 1)),
    ConvSpec(2, 4, 7, 9, 6, (3, 3), stride=(2, 2), padding=(1, 1)),
    ConvSpec(2, 4, 9, 9, 4, (3, 3), dilation=(2, 2), groups=2),
)


class Sound(ConvKernel):
    name = "sound"

    def forward(self, images, weight, spec):
        return nn.functional.conv2d(images, weight, None, spec.stride, spec.padding, spec.dilation, spec.groups)

    def backward_input(self, gradient, weight, spec):
        return torch.nn.grad.conv2d_input(
            spec.input_shape, weight, gradient, spec.stride, spec.padding, spec.dilation, spec.groups
        )

    def backward_weight(self, gradient, images, spec):
        return torch.nn.grad.conv2d_weight(
            images, spec.weight_shape, gradient, spec.stride, spec.padding, spec.dilation, spec.groups
        )


class FlipsTheFilter(Sound):
    def forward(self, images, weight, spec):
        return super().forward(images, weight.flip(2, 3), spec)


class FlipsTheGradient(Sound):
    def backward_input(self, gradient, weight, spec):
        return super().backward_input(gradient, weight.flip(2, 3), spec)


class AveragesWeightGradients(Sound):
    def backward_weight(self, gradient, images, spec):
        return super().backward_weight(gradient, images, spec) / max(spec.batch, 1)


class IgnoresGroups(Sound):
    def forward(self, images, weight, spec):
        return super().forward(images, weight[:, :1].expand_as(weight), spec)


class IgnoresStrides(Sound):
    def forward(self, images, weight, spec):
        dense = torch.as_strided(images, images.shape, torch.empty(images.shape, device="meta").stride())
        return super().forward(dense, weight, spec)


class HalfPrecision(Sound):
    def forward(self, images, weight, spec):
        return super().forward(images.bfloat16(), weight.bfloat16(), spec).float()


class ReturnsDoubles(Sound):
    def forward(self, images, weight, spec):
        return super().forward(images.double(), weight.double(), spec)


class TransposesTheOutput(Sound):
    def forward(self, images, weight, spec):
        return super().forward(images, weight, spec).transpose(0, 1)


class NaNOfNothing(Sound):
    def backward_weight(self, gradient, images, spec):
        if spec.batch == 0:
            return torch.full(spec.weight_shape, float("nan"))
        return super().backward_weight(gradient, images, spec)


class FailsOnLargeFilters(Sound):
    def forward(self, images, weight, spec):
        if spec.kernel[0] > 3:
            raise RuntimeError("no such tile")
        return super().forward(images, weight, spec)


class RefusesEverything(Sound):
    def refuses(self, spec):
        return "not today"


class RefusesWithoutReason(Sound):
    def refuses(self, spec):
        return spec.groups > 1


class PreparesWrongly(Sound):
    def prepare(self, weight, spec):
        return weight.transpose(2, 3) if spec.kernel[0] == spec.kernel[1] else weight


class EditsTheWeight(Sound):
    def backward_input(self, gradient, weight, spec):
        result = super().backward_input(gradient, weight, spec)
        weight.mul_(1.5)
        return result


class WorkspaceInMegabytes(Sound):
    def workspace(self, spec):
        return 1.5


class NegativeWorkspace(Sound):
    def workspace(self, spec):
        return -1


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (FlipsTheFilter, "forward agrees with float64 convolution"),
        (FlipsTheGradient, "backward_input agrees with float64 convolution"),
        (AveragesWeightGradients, "backward_weight agrees with float64 convolution"),
        (IgnoresGroups, "forward agrees with float64 convolution"),
        (IgnoresStrides, "forward of strided views agrees with float64 convolution"),
        (HalfPrecision, "forward agrees with float64 convolution to a relative L2 error of 1e-06"),
        (ReturnsDoubles, "forward has the right shape and type; it is torch.float64"),
        (TransposesTheOutput, "forward has the right shape and type"),
        (NaNOfNothing, "backward_weight agrees with float64 convolution"),
        (FailsOnLargeFilters, r"what refuses\(\) does not refuse is computed .*no such tile"),
        (RefusesEverything, "a kernel computes something"),
        (RefusesWithoutReason, r"refuses\(\) returns None or says why; it returns False"),
        (PreparesWrongly, "forward with a prepared weight agrees with float64 convolution"),
        (EditsTheWeight, "never edits its arguments"),
        (WorkspaceInMegabytes, r"workspace\(\) is a number of bytes; it returns 1.5"),
        (NegativeWorkspace, r"workspace\(\) is a number of bytes; it returns -1"),
    ],
)
def test_broken_kernel_is_named(broken, promise):
    with pytest.raises(BrokenPromise, match=f"^{broken.__name__} breaks a promise: .*{promise}"):
        check_kernel(broken())


def test_sound_kernel_passes():
    check_kernel(Sound())


def test_what_a_kernel_refuses_is_not_asked_of_it():
    class SmallFilters(FailsOnLargeFilters):
        def refuses(self, spec):
            return "filters up to 3" if spec.kernel[0] > 3 else None

    check_kernel(SmallFilters())


def test_a_looser_tolerance_and_other_specs_can_be_asked_for():
    check_kernel(HalfPrecision(), specs=FEW, tolerance=2e-2)


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


class Chooser(KernelChooser):
    """Replaces nothing."""

    def apply(self, model, inputs):
        return [KernelRow("0", "native", "kept")]


class ScalesAWeight(Chooser):
    def apply(self, model, inputs):
        with torch.no_grad():
            model[0].weight.mul_(2)
        return super().apply(model, inputs)


class RenamesParameters(Chooser):
    def apply(self, model, inputs):
        model[0] = nn.Sequential(model[0])
        return super().apply(model, inputs)


class NamesAnUnknownLayer(Chooser):
    def apply(self, model, inputs):
        return [KernelRow("conv1", "fast", "")]


class LosesTheBias(Chooser):
    def apply(self, model, inputs):
        model[0].forward = lambda images: nn.functional.conv2d(images, model[0].weight, padding=1)
        return super().apply(model, inputs)


class CutsTheGraph(Chooser):
    def apply(self, model, inputs):
        layer = model[3]
        layer.forward = lambda images: nn.functional.conv2d(
            images, layer.weight.detach() + 0 * layer.weight, layer.bias
        )
        return super().apply(model, inputs)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (ScalesAWeight, "leaves the parameters and their names"),
        (RenamesParameters, "leaves the parameters and their names"),
        (NamesAnUnknownLayer, "tells of layers that the model has; it has no .'conv1'"),
        (LosesTheBias, "the network's output agrees with float64"),
        (CutsTheGraph, "the network's gradient of 3.weight agrees with float64"),
    ],
)
def test_broken_chooser_is_named(broken, promise):
    with pytest.raises(BrokenPromise, match=f"^{broken.__name__} breaks a promise: .*{promise}"):
        check_kernel(broken())


def test_sound_chooser_passes():
    check_kernel(Chooser())
