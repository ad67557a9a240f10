"""binary_net and xnor: what becomes one bit and what is refused, gradients, telemetry, repeated conversion."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine import UsageError
from engine.binary.modules import BinaryConv2d, BinaryLinear, Sign
from engine.binary.network import BinaryNetwork
from engine.binary.packing import pack
from engine.loader import Position
from engine.plugins.models import MLP, LeNet, ResNet20, SmallCNN
from engine.plugins.precision import XNOR, BinaryNet
from engine.randomness import Key
from engine.testing import check_precision


def kinds(model: nn.Module, *wanted: type) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules() if isinstance(module, wanted)}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1),
        nn.BatchNorm2d(5), nn.Hardtanh(), nn.Flatten(), nn.Linear(80, 7), nn.BatchNorm1d(7),
    )  # fmt: skip


# The kit's regression has targets of about 1 and no BatchNorm behind its last layer, whose sums of 128 signs are far
# from that: what binary_net learns is tested on digits, all other promises here.
@pytest.mark.parametrize(
    ("options", "learns"),
    [(BinaryNet(), 10), (XNOR(binary_first=True, binary_last=True), 0.9), (XNOR(binary_last=True), 0.9)],
)
def test_it_keeps_the_promises_of_policies(options, learns):
    check_precision(options, learns=learns)


def test_layers_and_activations_become_one_bit_with_the_same_parameters_and_names():
    plain = network()
    before = dict(plain.named_parameters())
    model = BinaryNet().build().convert(plain)
    assert {name: id(p) for name, p in before.items()} == {name: id(p) for name, p in model.named_parameters()}
    assert [type(module) for module in model] == [
        BinaryConv2d, nn.MaxPool2d, nn.BatchNorm2d, Sign, BinaryConv2d, nn.BatchNorm2d, Sign, nn.Flatten, BinaryLinear,
        nn.BatchNorm1d,
    ]  # fmt: skip
    assert [model[0].padding_value, model[4].padding_value] == [0, -1]  # real inputs, signs
    assert [module.input_fraction for module in (model[0], model[4], model[8])] == [5, None, None]
    assert BinaryNet(input_fraction=None).build().convert(network())[0].input_fraction is None


def test_the_converted_network_computes_what_the_paper_says_and_so_do_its_gradients():
    """Forward and backward in float64, the straight-through masks written out."""
    model = BinaryNet().build().convert(network())
    images = 2 * torch.randn(4, 1, 8, 8)
    outputs = model(images)
    weight = torch.randn(4, 7)
    (outputs * weight).sum().backward()

    def straight(x: torch.Tensor) -> torch.Tensor:
        window = x.clamp(-1, 1)  # its gradient is 1 within, 0 beyond
        return window + (torch.where(x >= 0, 1.0, -1.0).double() - window).detach()

    p = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    rounded = (images.double() * 32).round().clamp(-128, 127) / 32
    x = nn.functional.conv2d(rounded, straight(p["0.weight"]), padding=1) + p["0.bias"].view(-1, 1, 1)
    x = nn.functional.max_pool2d(x, 2)
    x = nn.functional.batch_norm(x, None, None, p["2.weight"], p["2.bias"], training=True)
    x = nn.functional.pad(straight(x), (1, 1, 1, 1), value=-1.0)
    x = nn.functional.conv2d(x, straight(p["4.weight"])) + p["4.bias"].view(-1, 1, 1)
    x = straight(nn.functional.batch_norm(x, None, None, p["5.weight"], p["5.bias"], training=True)).flatten(1)
    x = nn.functional.linear(x, straight(p["8.weight"]), p["8.bias"])
    x = nn.functional.batch_norm(x, None, None, p["9.weight"], p["9.bias"], training=True)
    (x * weight).sum().backward()
    assert torch.allclose(outputs.double(), x, atol=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad.double(), p[name].grad, atol=1e-4), name


def test_xnor_leaves_first_and_last_layer_and_the_activation_between_real_ones_and_scales():
    model = XNOR().build().convert(MLP(hidden=[9, 8, 7], batch_norm=True).build((1, 4, 4), 5))
    assert kinds(model, nn.Linear, nn.ReLU, Sign) == {
        "fc1": nn.Linear, "relu1": Sign, "fc2": BinaryLinear, "relu2": Sign, "fc3": BinaryLinear, "relu3": nn.ReLU,
        "fc4": nn.Linear,
    }  # fmt: skip
    signs = torch.where(torch.randn(3, 9) >= 0, 1.0, -1.0)
    own = model.fc2.weight.detach().double()
    expected = signs.double() @ torch.sign(own).T * own.abs().mean(1)
    assert torch.allclose(model.fc2(signs).double(), expected, atol=1e-5)


@pytest.mark.parametrize("options", [BinaryNet(), XNOR()])
@pytest.mark.parametrize("model", [SmallCNN(width=4), ResNet20(depth=8), LeNet(relu="all"), MLP(hidden=[9, 9])])
def test_built_in_networks_convert_once_and_again_and_in_a_fresh_policy(options, model):
    shape = (1, 16, 16)
    plain = model.build(shape, 5)
    names = list(plain.state_dict())
    policy = options.build()
    converted = policy.convert(plain)
    before = kinds(converted, nn.Module)
    layers = [module for module in converted.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    binary = [getattr(layer, "binary_weight", False) for layer in layers]
    assert sum(binary) == len(layers) - (2 if isinstance(options, XNOR) else 0)
    hooks = sum(len(module._forward_pre_hooks) for module in converted.modules())
    assert hooks == sum(len(module._forward_pre_hooks) for module in policy.convert(converted).modules())
    for again in (policy, options.build()):
        assert again.convert(converted) is converted
        assert kinds(converted, nn.Module) == before
        assert list(converted.state_dict()) == names
    images = torch.randn(3, *shape)
    with torch.no_grad():
        assert torch.equal(options.build().export(copy.deepcopy(converted)).eval()(images), converted.eval()(images))


def test_residual_networks_read_signs_and_pad_with_them_behind_every_block():
    model = BinaryNet().build().convert(ResNet20(depth=8).build((3, 8, 8), 4))
    padding = {name: module.padding_value for name, module in model.named_modules() if isinstance(module, BinaryConv2d)}
    assert padding.pop("conv1") == 0
    assert set(padding.values()) == {-1}
    assert not kinds(model, nn.ReLU)
    assert len(kinds(model, Sign)) == 7


class Functional(nn.Module):
    def __init__(self, *layers: nn.Module, opaque: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.extra = nn.ModuleList(layers)
        self.opaque = opaque

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.opaque and x.sum() > 0:  # which torch.fx cannot follow
            x = x + 1
        x = self.first(x)
        x = self.extra[0](x) if self.extra else torch.relu(x)
        return self.second(x)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (Functional(), "precision=binary_net: function relu stands in front of a layer of one bit"),
        (Functional(nn.GELU()), r"layer 'extra.0' \(GELU\) stands in front of a layer of one bit"),
        (Functional(opaque=True), r"the forward of Functional cannot be followed \(symbolically traced"),
        (
            nn.Sequential(Functional(nn.Identity(), opaque=True), nn.ReLU(), nn.Linear(4, 2)),
            "the forward of Sequential cannot be followed",
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
            r"layer '2' \(Linear\) reads the numbers of another layer with no activation between them",
        ),
        (LeNet().build((1, 16, 16), 5), r"layer 'conv2' \(Conv2d\) reads the numbers .*model=lenet .* model.relu=all"),
        (nn.Sequential(nn.LSTM(4, 4)), r"layer '0' \(LSTM\) computes several things in one"),
        (nn.MultiheadAttention(4, 2), r"layer 'MultiheadAttention' \(MultiheadAttention\) computes several things"),
        (nn.Sequential(nn.Conv1d(1, 1, 3)), r"layer '0' \(Conv1d\) has weights of its own"),
        (nn.Sequential(nn.ConvTranspose2d(1, 1, 3)), r"layer '0' \(ConvTranspose2d\) has weights of its own"),
        (
            SmallCNN(drop_connect=0.5).build((1, 8, 8), 3),
            r"layer 'linear' \(DropConnectLinear\) has weights of its own",
        ),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")), r"layer '0' \(Conv2d\) has padding='same'"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), "the model has no linear layer or convolution to binarise"),
    ],
)
def test_what_has_no_form_in_one_bit_is_named_in_one_line(model, line):
    before = kinds(model, nn.Module)
    with pytest.raises(UsageError, match=line) as refused:
        BinaryNet().build().convert(model)
    assert "\n" not in str(refused.value)
    assert kinds(model, nn.Module) == before


def test_xnor_says_how_two_layers_can_be_binary():
    with pytest.raises(UsageError, match=r"the first stays real without precision\.binary_first=true"):
        XNOR().build().convert(MLP(hidden=[5]).build((1, 2, 2), 3))
    model = XNOR(binary_last=True).build().convert(MLP(hidden=[5]).build((1, 2, 2), 3))
    assert kinds(model, nn.Linear, Sign) == {"fc1": nn.Linear, "relu1": Sign, "fc2": BinaryLinear}


def test_xnor_needs_a_sign_between_its_real_first_layer_and_the_next():
    def chain(*between: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), *between, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    with pytest.raises(UsageError, match=r"precision=xnor: layer '1' \(Linear\) reads the numbers of another layer"):
        XNOR().build().convert(chain())
    assert kinds(XNOR().build().convert(chain(nn.ReLU())), Sign, BinaryLinear) == {"1": Sign, "2": BinaryLinear}


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 if x.sum() > 0 else x  # which torch.fx cannot follow


def test_a_layer_that_drops_blocks_at_random_leaves_every_activation_a_sign():
    model = BinaryNet().build().convert(ResNet20(depth=8, survival=0.5).build((3, 8, 8), 4))
    assert not kinds(model, nn.ReLU)
    assert len(kinds(model, Sign)) == 7


def test_a_module_that_cannot_be_followed_is_taken_as_one_and_is_no_activation():
    relu = nn.ReLU()
    inner = nn.Sequential(nn.Linear(4, 4), relu)
    model = BinaryNet().build().convert(nn.Sequential(Noise(), inner, nn.Linear(4, 4), relu, nn.Linear(4, 2)))
    assert type(model[1][1]) is type(model[3]) is Sign
    assert [model[1][0].input_fraction, model[2].input_fraction, model[4].input_fraction] == [5, None, None]
    with pytest.raises(UsageError, match=r"layer '2' \(Linear\) reads the numbers of another layer"):
        BinaryNet().build().convert(nn.Sequential(nn.Linear(4, 4), Noise(), nn.Linear(4, 2)))


def test_grouped_convolutions_and_a_model_that_is_one_layer_are_converted():
    conv = BinaryNet(input_fraction=None).build().convert(nn.Conv2d(4, 4, 3, groups=2))
    assert isinstance(conv, BinaryConv2d)
    x = torch.randn(2, 4, 5, 5)
    signs = torch.where(conv.weight >= 0, 1.0, -1.0).double()
    expected = nn.functional.conv2d(x.double(), signs, conv.bias.double(), groups=2)
    assert torch.allclose(conv(x).double(), expected, atol=1e-5)


def test_activations_outside_the_window_are_counted_in_watched_steps_of_training_alone():
    policy = BinaryNet().build()
    model = policy.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    policy.prepare(model, optimizer, Key.of(0))
    outside = seen = 0
    for step in range(4):
        images = torch.randn(5, 3)
        with policy.computing(Position(step, 5 * step), step > 1), policy.forward(torch.arange(5)):
            model(images).sum().backward()
        values = model[0](images)
        if step > 1:
            outside, seen = outside + int((values.abs() > 1).sum()), seen + values.numel()
        with torch.no_grad(), policy.forward():
            model.eval()(images)
            model.train()(images)
    assert 0 < outside < seen
    assert float(policy.telemetry()["precision/outside_window"]) == outside / seen
    assert set(policy.telemetry()) == {
        "precision/weight_flips", "precision/clipped_weights", "precision/outside_window"
    }  # fmt: skip


@pytest.mark.parametrize(("size", "floats"), [(28, False), (15, True)])
def test_pooling_that_keeps_an_odd_last_row_is_packed_as_bits_where_there_is_none(size, floats):
    model = BinaryNet().build().convert(LeNet(relu="all").build((1, size, size), 10)).eval()
    images, told = torch.randn(8, 1, size, size), []
    packed = pack(model, images, tell=told.append)
    with torch.no_grad():
        assert torch.equal(BinaryNetwork(packed.header, packed.arrays)(images), model(images))
    assert bool(told) == floats
