"""Choosing kernels for a model's layers: who is found, who gets what, and what the table says about it."""

from __future__ import annotations

import copy

import pytest
import torch
from installed import body, choices
from torch import nn
from torch.nn.functional import conv2d

from engine.convolutions import Chooser, KernelConvolution, survey
from engine.native import NativeKernel
from engine.plugins.kernels import Naive, Native

SHAPE = (4, 3, 12, 10)


class Recorder(NativeKernel):
    """Computes as torch does and keeps what it was asked for; refuses strides and filters of one row backwards."""

    name = "recorder"

    def __init__(self):
        self.calls = []

    def refuses(self, spec, direction):
        if spec.stride != (1, 1):
            return "the stride is not 1"
        return "the filter has one row" if spec.kernel[0] == 1 and direction != "forward" else None

    def forward(self, images, weight, bias, spec):
        self.calls.append(("forward", spec))
        return super().forward(images, weight, bias, spec)

    def backward_input(self, gradient, weight, spec):
        self.calls.append(("backward_input", spec))
        return super().backward_input(gradient, weight, spec)

    def backward_weight(self, gradient, images, spec):
        self.calls.append(("backward_weight", spec))
        return super().backward_weight(gradient, images, spec)


def network(*layers: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*layers)


def gradients(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output = model(images)
    output.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None} | {"output": output}


def rows_of(chooser, model, shape=SHAPE, **settings) -> dict[str, tuple[str, str]]:
    return {row.layer: (row.kernel, row.reason) for row in chooser.apply(model, shape, **settings)}


def test_what_is_not_needed_is_not_computed_by_the_kernel():
    kernel = Recorder()
    model = network(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].requires_grad_(False)
    Chooser(kernel).apply(model, SHAPE)
    kernel.calls.clear()
    gradients(model, torch.randn(SHAPE))
    asked = [(direction, spec.channels) for direction, spec in kernel.calls]
    assert sorted(asked) == sorted([*[("forward", c) for c in (3, 4, 4)], ("backward_input", 4), ("backward_input", 4),
                                    ("backward_weight", 3), ("backward_weight", 4)])  # fmt: skip


BORDERS = {
    "same": {"padding": "same", "kernel_size": (4, 3)},
    "same and dilated": {"padding": "same", "kernel_size": (4, 3), "dilation": (1, 2)},
    "valid": {"padding": "valid", "kernel_size": 3},
    "reflect": {"padding": (2, 1), "kernel_size": 3, "padding_mode": "reflect"},
    "circular": {"padding": (1, 2), "kernel_size": (3, 5), "padding_mode": "circular"},
    "replicate": {"padding": "same", "kernel_size": 4, "padding_mode": "replicate"},
    "strided": {"padding": (0, 2), "kernel_size": (1, 3), "stride": (2, 1), "groups": 1},
}


@pytest.mark.parametrize("border", BORDERS)
def test_paddings_of_all_kinds_agree_with_torch(border):
    model = network(nn.Conv2d(3, 4, **BORDERS[border])).double()
    expected = copy.deepcopy(model)
    assert rows_of(Naive().build(), model) == {"0": ("naive", "chosen")}
    images = torch.randn(SHAPE, dtype=torch.float64)
    torch.testing.assert_close(gradients(model, images), gradients(expected, images))


def test_an_image_without_a_batch_is_one():
    model = network(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    expected = copy.deepcopy(model)
    Naive().build().apply(model, SHAPE)
    image = torch.randn(SHAPE[1:])
    torch.testing.assert_close(model(image), expected(image))
    assert model(image).shape == (4, 12, 10)


class Doubling(nn.Conv2d):
    def forward(self, images):
        return 2 * super().forward(images)


class Branch(nn.Module):
    """Uses one of its two layers in an evaluation."""

    def __init__(self):
        super().__init__()
        self.used, self.training_only = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)

    def forward(self, images):
        return self.training_only(images) if self.training else self.used(images)


def test_layers_that_cannot_be_planned_are_left_to_torch_and_say_why():
    kernel = Recorder()
    model = network(Doubling(3, 3, 3), Branch(), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, stride=2))
    expected = copy.deepcopy(model)
    assert rows_of(Chooser(kernel), model) == {
        "0": ("native", "its class Doubling computes in its own way"),
        "1.used": ("recorder", "chosen"),
        "1.training_only": ("native", "an evaluation does not reach it"),
        "2": (
            "recorder / native / native",
            "recorder refuses it in backward_input and backward_weight: the filter has one row",
        ),
        "3": ("native", "recorder refuses it: the stride is not 1"),
    }
    images = torch.randn(SHAPE)
    torch.testing.assert_close(gradients(model, images), gradients(expected, images))


def test_a_lazy_layer_is_not_planned():
    model = network(nn.LazyConv2d(4, 3))
    rows = rows_of(Naive().build(), model)
    assert rows == {"0": ("native", "its shape is not known yet (a lazy layer)")}
    assert model(torch.randn(SHAPE)).shape == (4, 4, 10, 8)


def test_a_shared_layer_is_one():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = network(nn.Conv2d(3, 4, 1), shared, nn.MaxPool2d(2), shared)
    expected = copy.deepcopy(model)
    assert list(rows_of(Naive().build(), model)) == ["0", "1"]
    images = torch.randn(SHAPE)
    torch.testing.assert_close(gradients(model, images), gradients(expected, images))


def test_a_parametrised_layer_computes_with_what_its_parameters_make():
    model = network(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 2, 3)).double()
    expected = copy.deepcopy(model)
    chooser = Naive().build()
    assert {kernel for kernel, _ in rows_of(chooser, model).values()} == {"naive"}
    images = torch.randn(SHAPE, dtype=torch.float64)
    with torch.no_grad():
        for layer in (model[0], expected[0]):
            layer.parametrizations.weight.original0.mul_(3)
    found = gradients(model, images)
    assert "0.parametrizations.weight.original0" in found
    torch.testing.assert_close(found, gradients(expected, images))
    with torch.no_grad(), chooser.prepared(model):
        torch.testing.assert_close(model(images), expected(images))


def test_native_without_layers_changes_nothing_and_has_a_row_for_each_convolution():
    model = network(nn.Conv2d(3, 2, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1)), nn.Linear(2, 2))
    before = dict(model.named_modules())
    rows = rows_of(Native().build(choices()), model)
    assert rows == {"0": ("native", "torch's own"), "1.1": ("native", "torch's own")}
    assert dict(model.named_modules()) == before
    assert not any("_conv_forward" in vars(layer) for layer in model.modules())


def test_names_shapes_and_values_of_the_state_stay():
    model = body()
    before = copy.deepcopy(model.state_dict())
    Naive().build(choices()).apply(model, SHAPE)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last), "naive is fast in NHWC order"
    other = body()
    other.load_state_dict(model.state_dict())
    images = torch.randn(SHAPE)
    torch.testing.assert_close(model(images), other(images))


def test_a_deep_copy_computes_by_itself():
    model = body()
    kernel = Recorder()
    Chooser(kernel).apply(model, SHAPE)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    images = torch.randn(SHAPE)
    kernel.calls.clear()
    assert not copied(images).any()
    assert len(kernel.calls) == 4, "the copy computes with the kernel too"
    assert model(images).any()


def test_another_stage_chooses_anew():
    model, images = body(), torch.randn(SHAPE)
    expected = copy.deepcopy(model)(images)
    for kernels, installed in ((Naive(), True), (Native(layers=["conv1:native"]), False), (Naive(), True)):
        kernels.build(choices()).apply(model, SHAPE)
        ours = [isinstance(vars(m).get("_conv_forward"), KernelConvolution) for m in model.modules()
                if isinstance(m, nn.Conv2d)]  # fmt: skip
        assert ours == [installed] * 4
        torch.testing.assert_close(model(images), expected)
    model.conv1.requires_grad_(False)
    model.layer1.requires_grad_(False)
    layers = survey(model, SHAPE)
    assert [len(layer.directions) for layer in layers] == [1, 1, 1, 2]
    Naive().build(choices()).apply(model, SHAPE)
    assert model.layer2[0]._conv_forward.kernels == "naive/native/naive"


@pytest.mark.parametrize("kernels", [Native(), Native(layers=["conv1:native"])])
def test_filters_return_to_the_order_that_they_had_before_kernels_came(kernels):
    model, images = body(), torch.randn(SHAPE)
    model.layer2.to(memory_format=torch.channels_last)  # the model's own doing
    before = [parameter.stride() for parameter in model.parameters()]
    expected = copy.deepcopy(model)(images)
    for _ in range(2):
        Naive().build(choices()).apply(model, SHAPE)
        assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in model.layer1)
        copied = copy.deepcopy(model)
        for other in (model, copied):
            rows = kernels.build(choices()).apply(other, SHAPE)
            assert {row.kernel for row in rows} == {"native"}
            assert [parameter.stride() for parameter in other.parameters()] == before
            assert not any("_conv_forward" in vars(layer) for layer in other.modules())
            torch.testing.assert_close(other(images), expected)


def test_a_stage_is_planned_alike_by_a_run_that_comes_to_it_and_one_that_begins_there():
    seen = []

    class Planner(Chooser):
        def choose(self, layers, training, share):
            seen.append([layer.spec for layer in layers])
            return super().choose(layers, training, share)

    model, chooser = body(), Planner(Naive().kernel())
    for _ in range(2):
        chooser.apply(model, SHAPE)
    assert seen[0] == seen[1]


def test_native_needs_no_look_at_the_model():
    model = network(nn.Conv2d(3, 4, 3), nn.Linear(99, 1))  # which fails if it is run
    assert rows_of(Native().build(choices()), model) == {"0": ("native", "torch's own")}


def test_a_layers_function_takes_any_weight():
    layer = nn.Conv2d(3, 4, 3)
    function = KernelConvolution.of(layer, "naive/naive/naive")
    images, weight = torch.randn(SHAPE), torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(function(images, weight, None), conv2d(images, weight))
