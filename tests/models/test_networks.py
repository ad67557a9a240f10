"""The networks of the ImageNet papers: sizes and arithmetic to the digit, names, heads, least images, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from engine import Model, UsageError
from engine.cutting import graph_of
from engine.plugins.models import (
    NIN,
    VGG11,
    VGG13,
    VGG16,
    VGG19,
    AlexNet,
    Cifar10Full,
    Cifar10Quick,
    GoogLeNet,
    InceptionV3,
    LeNet,
    MobileNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    SqueezeNet,
    ZFNet,
)

Shape = tuple[int, int, int]
ALEX, IMAGENET, INCEPTION, CIFAR, MNIST = ((3, 227, 227), (3, 224, 224), (3, 299, 299), (3, 32, 32), (1, 28, 28))

# ZFNet's figure 3, layer by layer: its paper does not say the sum.
ZFNET = (
    3 * 96 * 49 + 96 + 96 * 256 * 25 + 256 + 256 * 384 * 9 + 384 + 384 * 384 * 9 + 384 + 384 * 256 * 9 + 256
    + 6 * 6 * 256 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
)  # fmt: skip
# One head is a 1x1 convolution to 128 channels, a hidden layer of 1024 over 4x4 places, and the classifier.
GOOGLENET_HEADS = sum(c * 128 + 128 + 4 * 4 * 128 * 1024 + 1024 + 1024 * 1000 + 1000 for c in (512, 528))

# Parameters, and 10^9 multiply-adds to the digits that are published: Caffe's model files, timm's and torchvision's
# tables (VGG-11 and 13, Inception's head), MobileNet's table 6.
PUBLISHED = {
    "AlexNet, two groups": (AlexNet(), ALEX, 60_965_224, 0.724),
    "AlexNet, one group": (AlexNet(groups=1), ALEX, 62_378_344, 1.135),
    "CaffeNet": (AlexNet(order="pool_norm"), ALEX, 60_965_224, 0.724),
    "ZFNet": (ZFNet(), IMAGENET, ZFNET, None),
    "NIN": (NIN(), IMAGENET, 7_595_176, 1.100),
    "VGG-11": (VGG11(), IMAGENET, 132_863_336, 7.609),
    "VGG-13": (VGG13(), IMAGENET, 133_047_848, 11.308),
    "VGG-16": (VGG16(), IMAGENET, 138_357_544, 15.470),
    "VGG-19": (VGG19(), IMAGENET, 143_667_240, 19.632),
    "GoogLeNet": (GoogLeNet(auxiliary=False), IMAGENET, 6_998_552, 1.583),
    "GoogLeNet with heads": (GoogLeNet(), IMAGENET, 6_998_552 + GOOGLENET_HEADS, 1.583),
    "Inception-v3": (InceptionV3(auxiliary=False), INCEPTION, 23_834_568, 5.713),
    "Inception-v3 with head": (InceptionV3(), INCEPTION, 27_161_264, 5.713),
    "ResNet-18": (ResNet18(), IMAGENET, 11_689_512, 1.814),
    "ResNet-34": (ResNet34(), IMAGENET, 21_797_672, 3.664),
    "ResNet-50 v1.5": (ResNet50(), IMAGENET, 25_557_032, 4.089),
    "ResNet-50 v1": (ResNet50(stride_in="1x1"), IMAGENET, 25_557_032, 3.858),
    "ResNet-101 v1.5": (ResNet101(), IMAGENET, 44_549_160, 7.801),
    "ResNet-152 v1.5": (ResNet152(), IMAGENET, 60_192_808, 11.514),
    "SqueezeNet 1.0": (SqueezeNet(), ALEX, 1_248_424, 0.861),
    "SqueezeNet 1.1": (SqueezeNet(version="1.1"), ALEX, 1_235_496, 0.388),
    "MobileNet": (MobileNet(), IMAGENET, 4_231_976, 0.569),
    "cifar10_quick": (Cifar10Quick(), CIFAR, 145_578, 0.01235),
    "cifar10_full": (Cifar10Full(), CIFAR, 89_578, 0.01230),
    "LeNet": (LeNet(), MNIST, 431_080, 0.00229),
}


def on_meta(options: Model, inputs: Shape, outputs: int = 1000) -> nn.Module:
    with torch.device("meta"):
        return options.build(inputs, outputs)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, inputs: Shape) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.empty(1, *inputs, device="meta"))
    return counter.get_total_flops() / 2


def heads(scores: Tensor | list[Tensor]) -> list[Tensor]:
    return [scores] if isinstance(scores, Tensor) else scores


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    options, inputs, parameters, billions = PUBLISHED[name]
    model = on_meta(options, inputs, 1000 if inputs[1] > 32 else 10)
    assert size(model) == parameters
    if billions is not None:
        digits = len(str(billions).partition(".")[2])
        assert multiply_adds(model, inputs) / 1e9 == pytest.approx(billions, abs=0.5 * 10.0**-digits * 1.0001)


def test_half_a_mobilenet_costs_what_its_table_6_says():
    model = on_meta(MobileNet(width=0.5), IMAGENET)
    assert (round(size(model) / 1e6, 1), round(multiply_adds(model, IMAGENET) / 1e6)) == (1.3, 149)


def test_zfnets_maps_have_the_sizes_of_its_figure_3():
    model, sizes, maps = on_meta(ZFNet(), IMAGENET), {}, torch.empty(1, *IMAGENET, device="meta")
    for name, layer in model.named_children():
        maps = layer(maps)
        sizes[name] = maps.shape[-1]
    named = [sizes[name] for name in ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")]
    assert named == [110, 55, 26, 13, 13, 13, 13, 6]


# Small members of each family with small images: options, inputs, the prefixes of what depends on the classes.
FAMILIES: dict[str, tuple[Model, Shape, set[str]]] = {
    "alexnet": (AlexNet(hidden=24), (3, 67, 83), {"fc8"}),
    "alexnet groups=1 lrn=paper": (AlexNet(groups=1, hidden=24, lrn="paper"), (3, 67, 67), {"fc8"}),
    "alexnet order=pool_norm": (AlexNet(hidden=24, order="pool_norm"), (1, 39, 39), {"fc8"}),
    "alexnet lrn=none": (AlexNet(hidden=24, lrn="none"), (3, 39, 39), {"fc8"}),
    "zfnet": (ZFNet(hidden=24), (3, 47, 50), {"fc8"}),
    "nin": (NIN(), (3, 64, 39), {"cccp8-1024"}),
    "vgg11": (VGG11(hidden=24, init="he"), (3, 31, 40), {"fc8"}),
    "vgg13 batch_norm": (VGG13(hidden=24, batch_norm=True), (3, 64, 64), {"fc8"}),
    "vgg16": (VGG16(hidden=24, init="he"), (1, 7, 9), {"fc8"}),
    "vgg19": (VGG19(hidden=24, init="he"), (3, 8, 8), {"fc8"}),
    "googlenet": (GoogLeNet(), (3, 64, 47), {"loss1.classifier", "loss2.classifier", "loss3.classifier"}),
    "googlenet auxiliary=false": (GoogLeNet(auxiliary=False, lrn="none"), (1, 31, 40), {"loss3.classifier"}),
    "inception_v3": (InceptionV3(), (3, 299, 299), {"AuxLogits.fc", "fc"}),
    "inception_v3 auxiliary=false": (InceptionV3(auxiliary=False), (3, 75, 79), {"fc"}),
    "resnet18": (ResNet18(), (3, 40, 33), {"fc"}),
    "resnet34": (ResNet34(survival=0.5), (1, 33, 40), {"fc"}),
    "resnet50": (ResNet50(), (3, 40, 64), {"fc"}),
    "resnet50 stride_in=1x1": (ResNet50(stride_in="1x1"), (3, 40, 64), {"fc"}),
    "squeezenet": (SqueezeNet(), (3, 50, 40), {"conv10"}),
    "squeezenet version=1.1": (SqueezeNet(version="1.1"), (1, 17, 17), {"conv10"}),
    "mobilenet": (MobileNet(width=0.25), (3, 64, 40), {"fc"}),
    "cifar10_quick": (Cifar10Quick(), (3, 8, 32), {"ip2"}),
    "cifar10_full": (Cifar10Full(), (1, 28, 28), {"ip1"}),
}
NAMES = sorted(FAMILIES)
LONG = [pytest.param(name, marks=pytest.mark.soak) if name == "inception_v3" else name for name in NAMES]


@pytest.mark.parametrize("name", LONG)
def test_other_images_and_classes_give_scores_and_gradients(name):
    options, inputs, expected = FAMILIES[name]
    torch.manual_seed(1)
    model = options.build(inputs, 7)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # a hidden layer of few units might lose all
        if type(layer).__name__ == "StochasticDepth":
            layer.survival = 1.0
    scores = heads(model(torch.randn(2, *inputs)))
    assert [tuple(head.shape) for head in scores] == [(2, 7)] * len(expected)
    sum(head.square().sum() for head in scores).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    assert model.eval()(torch.randn(3, *inputs)).shape == (3, 7)  # the main head alone


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_classes_changes_the_heads_alone(name):
    options, inputs, expected = FAMILIES[name]
    seven, nine = (on_meta(options, inputs, outputs).state_dict() for outputs in (7, 9))
    changed = {key.rpartition(".")[0] for key, value in seven.items() if value.shape != nine[key].shape}
    assert changed == expected
    assert list(seven) == list(nine)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_can_be_traced_in_both_modes(name):
    options, inputs, expected = FAMILIES[name]
    model = on_meta(options, inputs, 7)
    images = torch.empty(2, *inputs, device="meta")
    for mode, count in ((True, len(expected)), (False, 1)):
        traced = fx.GraphModule(model, graph_of(model.train(mode), "a test", "mend it"))
        assert [tuple(head.shape) for head in heads(traced(images))] == [(2, 7)] * count


@pytest.mark.parametrize("name", ["googlenet auxiliary=false", "resnet18", "squeezenet", "mobilenet"])
def test_a_traced_network_says_the_same(name):
    options, inputs, _ = FAMILIES[name]
    model, images = options.build(inputs, 7).eval(), torch.randn(2, *inputs)
    traced = fx.GraphModule(model, graph_of(model, "a test", "mend it"))
    torch.testing.assert_close(traced(images), model(images), rtol=0, atol=0)


LEAST = {
    "alexnet": (AlexNet(), 39, ""),
    "zfnet": (ZFNet(), 47, ""),
    "nin": (NIN(), 39, ""),
    "googlenet auxiliary": (GoogLeNet(), 47, "model.auxiliary=false"),
    "googlenet": (GoogLeNet(auxiliary=False), 31, ""),
    "inception_v3 auxiliary": (InceptionV3(), 299, "model.auxiliary=false"),
    "inception_v3": (InceptionV3(auxiliary=False), 75, ""),
    "squeezenet": (SqueezeNet(), 21, ""),
    "squeezenet 1.1": (SqueezeNet(version="1.1"), 17, ""),
    "cifar10_quick": (Cifar10Quick(), 8, ""),
    "cifar10_full": (Cifar10Full(), 8, ""),
}


@pytest.mark.parametrize("name", LEAST)
def test_the_least_size_is_what_torch_can_compute_and_less_is_refused(name):
    options, least, advice = LEAST[name]
    model = on_meta(options, (3, least, least), 7)
    assert heads(model(torch.empty(2, 3, least, least, device="meta")))[0].shape == (2, 7)
    for height, width in ((least - 1, 300), (300, least - 1)):
        with pytest.raises(
            UsageError, match=rf"^model={name.split()[0]} needs .*{least}x{least}, not {height}x{width}"
        ) as told:
            on_meta(options, (3, height, width), 7)
        assert advice in str(told.value)
    with pytest.raises(RuntimeError):  # and the model's own layers have nothing left there
        model(torch.empty(2, 3, least - 1, least, device="meta"))


def test_images_of_one_pixel_pass_the_networks_that_pad():
    for options in (VGG11(hidden=8), ResNet18(), ResNet50(), MobileNet(width=0.1)):
        assert on_meta(options, (3, 1, 1), 7).eval()(torch.empty(2, 3, 1, 1, device="meta")).shape == (2, 7)
