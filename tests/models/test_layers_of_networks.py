"""Layers of the ImageNet networks: their names, strides, pooling, dropout and initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import Model
from engine.plugins.models import (
    NIN,
    VGG11,
    VGG16,
    AlexNet,
    Cifar10Full,
    Cifar10Quick,
    GoogLeNet,
    InceptionV3,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    SqueezeNet,
    ZFNet,
)

Shape = tuple[int, int, int]
ALEX, IMAGENET, INCEPTION, CIFAR = (3, 227, 227), (3, 224, 224), (3, 299, 299), (3, 32, 32)


def on_meta(options: Model, inputs: Shape, outputs: int = 1000) -> nn.Module:
    with torch.device("meta"):
        return options.build(inputs, outputs)


def shapes(options: Model, inputs: Shape, *names: str) -> list[tuple[int, ...]]:
    state = on_meta(options, inputs).state_dict()
    return [tuple(state[name].shape) for name in names]


def layer_names(options: Model, inputs: Shape) -> list[str]:
    return [name.removesuffix(".weight") for name in on_meta(options, inputs).state_dict() if name.endswith(".weight")]


def test_layers_have_the_names_of_caffes_weights():
    alexnet = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert layer_names(AlexNet(), ALEX) == layer_names(ZFNet(), IMAGENET) == alexnet
    assert shapes(AlexNet(), ALEX, "conv2.weight", "conv4.weight", "fc6.weight") == [
        (256, 48, 5, 5), (384, 192, 3, 3), (4096, 9216),
    ]  # fmt: skip
    assert layer_names(VGG16(), IMAGENET)[4:7] == ["conv3_1", "conv3_2", "conv3_3"]
    assert layer_names(VGG16(), IMAGENET)[-3:] == ["fc6", "fc7", "fc8"]
    assert layer_names(NIN(), IMAGENET) == [
        "conv1", "cccp1", "cccp2", "conv2", "cccp3", "cccp4", "conv3", "cccp5", "cccp6", "conv4-1024", "cccp7-1024",
        "cccp8-1024",
    ]  # fmt: skip
    squeezenet = layer_names(SqueezeNet(), ALEX)
    assert squeezenet[:4] == ["conv1", "fire2.squeeze1x1", "fire2.expand1x1", "fire2.expand3x3"]
    assert (len(squeezenet), squeezenet[-1]) == (26, "conv10")
    googlenet = layer_names(GoogLeNet(), IMAGENET)
    parts = ["1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj"]
    assert googlenet[:9] == ["conv1.7x7_s2", "conv2.3x3_reduce", "conv2.3x3", *(f"inception_3a.{p}" for p in parts)]
    assert googlenet[-7:] == [
        "loss3.classifier", "loss1.conv", "loss1.fc", "loss1.classifier", "loss2.conv", "loss2.fc", "loss2.classifier",
    ]  # fmt: skip
    assert shapes(GoogLeNet(), IMAGENET, "loss1.fc.weight", "loss3.classifier.weight") == [(1024, 2048), (1000, 1024)]
    assert layer_names(Cifar10Quick(), CIFAR) == ["conv1", "conv2", "conv3", "ip1", "ip2"]
    assert layer_names(Cifar10Full(), CIFAR) == ["conv1", "conv2", "conv3", "ip1"]


def test_layers_have_the_names_of_torchvisions_weights():
    state = on_meta(ResNet50(), IMAGENET).state_dict()
    assert len(state) == 320  # as many as torchvision's resnet50-*.pth hold
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias", "fc.bias"} <= set(
        state
    )
    assert not any(name.startswith("layer1.1.downsample") for name in state)
    assert "layer1.0.downsample.0.weight" not in on_meta(ResNet18(), IMAGENET).state_dict()
    assert shapes(ResNet18(), IMAGENET, "layer2.0.downsample.1.running_mean") == [(128,)]
    assert shapes(
        InceptionV3(), INCEPTION, "Conv2d_4a_3x3.conv.weight", "Mixed_6c.branch7x7dbl_4.conv.weight",
        "Mixed_7c.branch3x3dbl_3b.bn.running_mean", "AuxLogits.conv1.conv.weight", "AuxLogits.fc.weight",
    ) == [(192, 80, 3, 3), (160, 160, 7, 1), (384,), (768, 128, 5, 5), (1000, 768)]  # fmt: skip


def strides(options: Model) -> list[tuple[int, int]]:
    block = on_meta(options, IMAGENET).layer2[0]
    return [block.conv1.stride, block.conv2.stride, block.downsample[0].stride]


def test_the_stride_is_where_it_is_asked_for():
    assert strides(ResNet50(stride_in="1x1")) == [(2, 2), (1, 1), (2, 2)]
    assert strides(ResNet50()) == strides(ResNet101()) == [(1, 1), (2, 2), (2, 2)]


@pytest.mark.parametrize("options", [ResNet18(zero_init=True), ResNet50(zero_init=True)])
def test_with_zero_init_a_block_is_its_shortcut(options):
    block = options.build((3, 32, 32), 10).eval().layer1[1]
    x = torch.randn(2, block.conv1.in_channels, 5, 5)
    assert torch.equal(block(x), x.clamp(min=0))


def test_survival_falls_from_block_to_block():
    model = on_meta(ResNet34(survival=0.2), IMAGENET)
    kept = [module.survival for module in model.modules() if type(module).__name__ == "StochasticDepth"]
    assert kept == pytest.approx([1 - number / 16 * 0.8 for number in range(1, 17)])


def deviation_of(model: nn.Module, name: str) -> float:
    return model.get_parameter(f"{name}.weight").std().item()


def test_weights_start_as_the_papers_say():
    torch.manual_seed(0)
    alexnet = AlexNet(hidden=100).build((3, 67, 67), 50)
    for name in ("conv1", "conv2", "conv4", "fc6", "fc7", "fc8"):
        assert deviation_of(alexnet, name) == pytest.approx(0.01, rel=0.05), name
    ones = {name for name, p in alexnet.named_parameters() if name.endswith("bias") and (p == 1).all()}
    assert ones == {"conv2.bias", "conv4.bias", "conv5.bias", "fc6.bias", "fc7.bias"}
    zfnet = ZFNet(hidden=100).build((3, 67, 67), 50)
    assert not any(p.any() for name, p in zfnet.named_parameters() if name.endswith("bias"))
    googlenet = GoogLeNet().build((3, 64, 64), 50)
    for name, layer in googlenet.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()  # uniform in +-sqrt(3 / fan-in), whose standard deviation is that
            assert layer.weight.abs().max().item() <= (3 / fan_in) ** 0.5, name
            assert layer.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.1), name
            assert layer.bias.unique().tolist() == [0.0 if "classifier" in name else pytest.approx(0.2)], name
    resnet = ResNet18().build((3, 32, 32), 10)
    assert deviation_of(resnet, "layer2.0.conv1") == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.05)
    vgg = VGG11(hidden=8).build((3, 32, 32), 10)
    assert deviation_of(vgg, "conv3_1") == pytest.approx((2 / (9 * (128 + 256))) ** 0.5, rel=0.05)
    quick = Cifar10Quick().build((3, 32, 32), 10)
    expected = {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "ip1": 0.1, "ip2": 0.1}
    assert {name: deviation_of(quick, name) for name in expected} == pytest.approx(expected, rel=0.1)


def test_what_a_maps_window_misses_is_kept_by_caffes_networks_alone():
    def windows(options: Model) -> set[bool]:
        layers = on_meta(options, INCEPTION).modules()
        return {layer.ceil_mode for layer in layers if hasattr(layer, "ceil_mode") and layer.stride in (2, 3)}

    for options in (AlexNet(), NIN(), GoogLeNet(), SqueezeNet(), Cifar10Quick(), Cifar10Full()):
        assert windows(options) == {True}, options
    assert windows(ResNet50()) == windows(InceptionV3(auxiliary=False)) == {False}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (AlexNet(), [0.5, 0.5]),
        (VGG16(), [0.5, 0.5]),
        (NIN(), [0.5]),
        (SqueezeNet(), [0.5]),
        (GoogLeNet(), [0.4, 0.7, 0.7]),
        (InceptionV3(), [0.5]),
        (ResNet50(), []),
    ],
)
def test_dropout_is_where_the_papers_have_it(options, expected):
    assert [layer.p for layer in on_meta(options, INCEPTION).modules() if isinstance(layer, nn.Dropout)] == expected
