"""Weights that are prepared inside an evaluation: once, for that evaluation alone, and never under gradients."""

from __future__ import annotations

import copy
import pickle
from contextlib import ExitStack

import pytest
import torch
from installed import KERNELS
from torch import nn
from torch.nn.functional import conv2d

from engine.convolutions import Chooser
from engine.native import NativeKernel
from engine.ops import KernelConvolution
from engine.plugins.kernels import Naive

SHAPE = (4, 3, 8, 8)


class Doubled(NativeKernel):
    """Keeps a prepared weight as a flat row of twice its values, and counts how often it was made."""

    name = "doubled"

    def __init__(self):
        self.made, self.used = 0, 0

    def prepare(self, weight, spec):
        self.made += 1
        return 2 * weight.flatten()

    def forward(self, images, weight, bias, spec):
        if weight.dim() == 1:
            self.used += 1
            weight = weight.view(spec.weight_shape) / 2
        return super().forward(images, weight, bias, spec)


@pytest.fixture
def kernel():
    return Doubled()


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"))


def test_a_weight_is_prepared_once_for_all_batches_of_an_evaluation(kernel, model):
    chooser, images = Chooser(kernel), torch.randn(SHAPE)
    expected = model(images)
    chooser.apply(model, SHAPE)
    with torch.no_grad(), chooser.prepared(model):
        for _ in range(3):
            torch.testing.assert_close(model(images), expected)
    assert (kernel.made, kernel.used) == (2, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected)
    assert kernel.used == 6, "outside of an evaluation nothing prepared is used"


def test_another_shape_is_prepared_for_itself(kernel, model):
    chooser, images = Chooser(kernel), torch.randn(SHAPE)
    expected = copy.deepcopy(model)
    chooser.apply(model, SHAPE)
    with torch.no_grad(), chooser.prepared(model):
        for some in (images, images[:1], images[:, :, :6], images[:0], images):
            torch.testing.assert_close(model(some), expected(some))


def test_weights_that_changed_between_evaluations_are_seen(kernel, model):
    chooser, images = Chooser(kernel), torch.randn(SHAPE)
    expected = copy.deepcopy(model)
    chooser.apply(model, SHAPE)
    for change in (
        lambda p: p.mul_(1.5),  # as an optimiser does
        lambda p: setattr(p, "data", p.data + 1),  # as an average of weights is swapped in
        lambda p: p.data.neg_(),  # which torch's version counter does not see
    ):
        with torch.no_grad(), chooser.prepared(model):
            torch.testing.assert_close(model(images), expected(images))
        with torch.no_grad():
            for module in (model, expected):
                for parameter in module.parameters():
                    change(parameter)
    with torch.no_grad(), chooser.prepared(model):
        torch.testing.assert_close(model(images), expected(images))


def test_an_evaluation_that_fails_prepares_nothing_for_the_next(kernel, model):
    chooser, images = Chooser(kernel), torch.randn(SHAPE)
    chooser.apply(model, SHAPE)
    with pytest.raises(RuntimeError), torch.no_grad(), chooser.prepared(model):
        model(torch.cat([model(images), images], 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
        model[2].bias.zero_()
        assert not model(images).any()
        with chooser.prepared(model):
            assert not model(images).any()


def test_gradients_inside_an_evaluation_use_the_weight_itself(kernel, model):
    chooser, images = Chooser(kernel), torch.randn(SHAPE)
    chooser.apply(model, SHAPE)
    with chooser.prepared(model):
        with torch.no_grad():
            model(images)
        used = kernel.used
        model(images).sum().backward()
    assert kernel.used == used == 2
    assert model[0].weight.grad.any()


def test_a_deep_copy_made_inside_an_evaluation_has_weights_of_its_own(kernel, model):
    chooser, images = Chooser(kernel), torch.randn(SHAPE)
    chooser.apply(model, SHAPE)
    with torch.no_grad(), chooser.prepared(model):
        expected = model(images)
        copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        assert not copied(images).any()
        torch.testing.assert_close(model(images), expected)


def test_batches_of_another_type_inside_an_evaluation(kernel, model):
    chooser, images = Chooser(kernel), torch.randn(SHAPE)
    expected = copy.deepcopy(model)
    chooser.apply(model, SHAPE)
    with torch.no_grad(), chooser.prepared(model):
        torch.testing.assert_close(model(images), expected(images))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(images.bfloat16())
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, expected(images.bfloat16().float()))


class Remembering(Doubled):
    """Its prepared weight fits images of the type and order that it was made for."""

    name = "remembering"

    def prepare(self, weight, spec):
        return torch.cat([super().prepare(weight, spec), torch.tensor([spec.channels_last], dtype=spec.dtype)])

    def forward(self, images, weight, bias, spec):
        assert (weight[-1] == spec.channels_last, weight.dtype) == (True, spec.dtype)
        return super().forward(images, weight[:-1], bias, spec)


def test_a_weight_is_prepared_anew_for_images_of_another_type_or_order():
    layer = nn.Conv2d(3, 4, 3)
    chooser, images, model = Chooser(Remembering()), torch.randn(SHAPE), nn.Sequential(layer)
    chooser.apply(model, SHAPE)
    with torch.no_grad(), chooser.prepared(model):
        for some in (images, images.double(), images.contiguous(memory_format=torch.channels_last), images):
            weight, bias = layer.weight.to(some.dtype), layer.bias.to(some.dtype)
            torch.testing.assert_close(layer._conv_forward(some, weight, bias), conv2d(some, weight, bias))


class Even(Doubled):
    name = "even"

    def refuses(self, spec, direction):
        return "the batch is odd" if spec.batch % 2 else None


@pytest.mark.filterwarnings("ignore:kernel even gives way")
@pytest.mark.parametrize("chooser", [Naive().build(), Chooser(Even())])
def test_a_parametrised_weight_without_a_prepared_form_is_used_as_it_is(chooser):
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))  # a new tensor at every call
    expected, images = copy.deepcopy(model), torch.randn(SHAPE)
    chooser.apply(model, SHAPE)
    with torch.no_grad(), chooser.prepared(model):
        for some in (images, images, images[:3], images[:3]):
            torch.testing.assert_close(model(some), expected(some))


def test_the_first_of_two_evaluations_to_end_does_not_end_the_other(kernel, model):
    chooser, images = Chooser(kernel), torch.randn(SHAPE)
    chooser.apply(model, SHAPE)
    first, second = ExitStack(), ExitStack()
    with torch.no_grad():
        first.enter_context(chooser.prepared(model))
        second.enter_context(chooser.prepared(model))
        model(images)
        first.close()
        model(images)
        assert (kernel.made, kernel.used) == (2, 4)
        second.close()
        model(images)
    assert (kernel.made, kernel.used) == (2, 4)


def test_an_evaluation_may_end_in_another_thread_while_a_weight_is_prepared(kernel, model):
    chooser, images, other = Chooser(kernel), torch.randn(SHAPE), ExitStack()
    expected = model(images)
    chooser.apply(model, SHAPE)
    prepare = kernel.prepare

    def meanwhile(weight, spec):
        other.close()
        return prepare(weight, spec)

    kernel.prepare = meanwhile
    with torch.no_grad():
        other.enter_context(chooser.prepared(model))
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))])
def test_a_copied_function_has_no_prepared_weights(kernel, copied):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    chooser, images = Chooser(kernel), torch.randn(SHAPE)
    chooser.apply(model, SHAPE)
    with torch.no_grad(), chooser.prepared(model):
        model(images)
        other = copied(model[0]._conv_forward)
        assert isinstance(other, KernelConvolution)
        weight = torch.randn(4, 3, 3, 3)
        torch.testing.assert_close(other(images, weight, None), conv2d(images, weight))
    assert kernel.used == 1
    assert (other.prepared, other.evaluations) == (None, 0)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_prepared_weights_of_every_kernel_give_the_convolution(kernel):
    """One layer for all kernels: depthwise, as the only one that all of them take."""
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4).double()
    images = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    expected = conv2d(images, layer.weight, layer.bias, padding=1, groups=4)
    model = nn.Sequential(layer)
    chooser = Chooser(kernel)
    (row,) = chooser.apply(model, (2, 4, 9, 7), training=False)
    assert row.kernel == kernel.name
    with torch.no_grad(), chooser.prepared(model):
        for _ in range(2):
            torch.testing.assert_close(model(images), expected)
            torch.testing.assert_close(model(images[:1]), expected[:1])
