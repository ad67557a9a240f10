"""check_kernel names the promise that a broken chooser breaks."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from torch import nn

from engine.interfaces import KernelChooser, KernelRow
from engine.testing import BrokenPromise, check_kernel
from engine.testing.small import SmallKernels


class Chooser(KernelChooser):
    """Replaces nothing."""

    def apply(self, model, inputs, *, training, share):
        return [KernelRow("0", "native", "kept")]


class ScalesAWeight(Chooser):
    def apply(self, model, inputs, **settings):
        with torch.no_grad():
            model[0].weight.mul_(2)
        return super().apply(model, inputs, **settings)


class RenamesParameters(Chooser):
    def apply(self, model, inputs, **settings):
        model[0] = nn.Sequential(model[0])
        return super().apply(model, inputs, **settings)


class NamesAnUnknownLayer(Chooser):
    def apply(self, model, inputs, **settings):
        return [KernelRow("conv1", "fast", "")]


class TakesNoTraining(Chooser):
    def apply(self, model, inputs):
        return []


class LosesTheBias(Chooser):
    def apply(self, model, inputs, **settings):
        model[0].forward = lambda images: nn.functional.conv2d(images, model[0].weight, padding=1)
        return super().apply(model, inputs, **settings)


class CutsTheGraph(Chooser):
    def apply(self, model, inputs, **settings):
        layer = model[4]
        layer.forward = lambda images: nn.functional.conv2d(
            images, layer.weight.detach() + 0 * layer.weight, layer.bias
        )
        return super().apply(model, inputs, **settings)


class Replacing(Chooser):
    """Gives the first layer a function of the images, the weight and the bias."""

    def apply(self, model, inputs, **settings):
        model[0]._conv_forward = self.function(model[0])
        return super().apply(model, inputs, **settings)


class KnowsOneLayer(Replacing):
    """Holds on to the weight of the layer that it was made for, so that a deep copy computes with it too."""

    def function(self, layer):
        weight = layer.weight
        return lambda images, _, bias: nn.functional.conv2d(images, weight, bias, padding=1)


class KeepsTheFirstWeight(Replacing):
    """Prepares a weight once for all evaluations, also after it has changed."""

    def function(self, layer):
        kept = layer.weight.detach().clone()

        def compute(images, weight, bias):
            return nn.functional.conv2d(images, weight if layer.training else kept, bias, padding=1)

        return compute


class PreparesWrongly(Chooser):
    @contextmanager
    def prepared(self, model):
        model[0]._conv_forward = lambda images, weight, bias: nn.functional.conv2d(
            images, weight.transpose(2, 3), bias, padding=1
        )
        yield
        del model[0]._conv_forward


class ForgetsToShrink(Replacing):
    """Computes what it was planned for: the first image of a smaller batch comes out right, with copies beside it."""

    def function(self, layer):
        def compute(images, weight, bias):
            return nn.functional.conv2d(images.expand(2, -1, -1, -1), weight, bias, padding=1)

        return compute


class PlansObjects(Chooser):
    def plan(self):
        return {"0": torch.float32}


class PlansTuples(Chooser):
    def plan(self):
        return {"0": (1, 2)}


class FailsToLoad(Chooser):
    def load(self, plan):
        raise KeyError("layers")


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (ScalesAWeight, "leaves the parameters and their names"),
        (RenamesParameters, "leaves the parameters and their names"),
        (NamesAnUnknownLayer, "tells of layers that the model has; it has no .'conv1'"),
        (TakesNoTraining, "takes any model with convolutions; TypeError"),
        (LosesTheBias, "the network's output agrees with float64"),
        (CutsTheGraph, "the network's gradient of 4.weight agrees with float64"),
        (KnowsOneLayer, "the network's output as a deep copy with other weights agrees"),
        (KeepsTheFirstWeight, "the network's output in evaluation after its weights changed agrees"),
        (PreparesWrongly, "the network's output in evaluation agrees"),
        (ForgetsToShrink, "the network's output of a smaller batch has the right shape"),
        (PlansObjects, r"plan\(\) returns a dictionary of JSON values; TypeError"),
        (PlansTuples, r"plan\(\) returns a dictionary of JSON values; it returns"),
        (FailsToLoad, r"load\(\) takes up what plan\(\) returned; KeyError"),
    ],
)
def test_broken_chooser_is_named(broken, promise):
    with pytest.raises(BrokenPromise, match=f"^{broken.__name__} breaks a promise: .*{promise}"):
        check_kernel(broken())


def test_sound_chooser_passes():
    check_kernel(Chooser())


def test_a_choice_without_a_kernel_of_its_own_is_checked_by_what_it_builds():
    check_kernel(SmallKernels())

    @dataclass
    class Scaling(SmallKernels):
        def build(self, installed=MappingProxyType({})):
            return ScalesAWeight()

    with pytest.raises(BrokenPromise, match=r"^Scaling breaks a promise: .*leaves the parameters"):
        check_kernel(Scaling())


def test_a_plan_that_is_forgotten_is_a_broken_promise():
    class Forgets(Chooser):
        """Plans by how often it was asked."""

        calls = 0

        def plan(self):
            self.calls += 1
            return {"calls": self.calls}

    with pytest.raises(BrokenPromise, match="a loaded plan is kept"):
        check_kernel(Forgets())
