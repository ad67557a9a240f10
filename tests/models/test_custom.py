"""Networks from a list: published ones spelled out, the grammar, and a line for every mistake."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine import UsageError
from engine.cutting import graph_of
from engine.plugins.models import Custom
from engine.plugins.models.words import read_word


def cost(options: Custom, inputs: tuple[int, int, int], outputs: int = 1000) -> tuple[int, float]:
    """Return the parameters and the 10^9 multiply-adds, to three digits."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        model = options.build(inputs, outputs).eval()
        with counter:
            assert model(torch.empty(1, *inputs)).shape == (1, outputs)
    return sum(p.numel() for p in model.parameters()), round(counter.get_total_flops() / 2e9, 3)


def test_vgg11_spelled_out():
    layers = [
        "conv3x3:64", "pool", "conv3x3:128", "pool", "stack3x3:256x2", "pool", "stack3x3:512x2", "pool",
        "conv3x3:512*2", "pool", "linear:4096", "dropout:0.5", "linear:4096", "dropout:0.5",
    ]  # fmt: skip
    assert cost(Custom(layers=layers, batch_norm=False), (3, 224, 224)) == (132_863_336, 7.609)


def test_resnet18_spelled_out():
    layers = [
        "conv7x7:64/2", "pool3x3/2", "+stack3x3:64x2*2", "+stack3x3:128x2/2*2", "+stack3x3:256x2/2*2",
        "+stack3x3:512x2/2*2",
    ]  # fmt: skip
    assert cost(Custom(layers=layers), (3, 224, 224)) == (11_689_512, 1.814)


def test_mobilenet_spelled_out():
    layers = [
        "conv3x3:32/2", "depthwise:64", "depthwise:128/2", "depthwise:128", "depthwise:256/2", "depthwise:256",
        "depthwise:512/2", "depthwise:512*5", "depthwise:1024/2", "depthwise:1024",
    ]  # fmt: skip
    assert cost(Custom(layers=layers), (3, 224, 224)) == (4_231_976, 0.569)


def test_the_lectures_comparisons_can_be_typed():
    def weights(word: str) -> float:
        layers = ["conv1x1:32", word]
        total, _ = cost(Custom(layers=layers, batch_norm=False, bias=False), (1, 8, 8), 10)
        return (total - 32 - 32 * 10 - 10) / 32**2  # less the first layer's and the head's

    words = ["conv7x7:32", "stack3x3:32x3", "conv3x3:32", "conv1x3+3x1:32", "bottleneck:32", "bottleneck1x3+3x1:32"]
    assert [weights(word) for word in words] == [49, 27, 9, 6, 3.25, 2.5]


EVERY = [
    "conv5x5:8/2", "lrn", "+bottleneck:12*2", "pool3x3/2", "conv1x5+5x1:10", "bottleneck1x3+3x1:8/2", "avgpool",
    "+depthwise3x3:8", "depthwise5x5:6", "+conv3x3:6", "dropout:.25", "linear:20*2", "dropout:0.5",
]  # fmt: skip


@pytest.mark.parametrize("layers", [EVERY, ["gap"], ["linear:4"], [], ["conv1x3:4", "gap", "dropout:0"]])
@pytest.mark.parametrize("inputs", [(3, 33, 47), (1, 17, 9)])
def test_every_word_trains(layers, inputs):
    torch.manual_seed(0)
    model = Custom(layers=layers).build(inputs, 5)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    model(torch.randn(4, *inputs)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    images = torch.randn(2, *inputs)
    traced = torch.fx.GraphModule(model, graph_of(model.eval(), "a test", "mend it"))
    torch.testing.assert_close(traced(images), model(images), rtol=0, atol=0)
    six = Custom(layers=layers).build(inputs, 6).state_dict()
    assert {name for name, value in model.state_dict().items() if value.shape != six[name].shape} == {
        "head.weight", "head.bias",
    }  # fmt: skip


def test_layers_are_named_by_their_places():
    model = Custom(layers=["conv3x3:4", "pool", "conv3x3:8/2*2", "linear:9"]).build((1, 9, 9), 3)
    assert [name for name, _ in model.named_children()] == ["layer1", "layer2", "layer3", "layer4", "head"]
    assert [(conv.stride, conv.out_channels) for conv in model.layer3.modules() if isinstance(conv, nn.Conv2d)] == [
        ((2, 2), 8), ((1, 1), 8),
    ]  # fmt: skip
    assert model.layer4[1].in_features == 8 * 3 * 3


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("convv3x3:64", "no such kind of layer; did you mean 'conv'"),
        ("", "no such kind of layer"),
        ("3x3", "no such kind of layer"),
        ("conv3x3", "write conv3x3:64"),
        ("conv:64", "write conv3x3:64"),
        ("conv3:64", "write conv3x3:64"),
        ("conv3x3:64x2", "write conv3x3:64"),
        ("conv3x3:6.5", "whole"),
        ("conv3x3:0", "whole one, 1 or more"),
        ("conv4x4:64", "odd"),
        ("conv3x3:64/0", "at least 1"),
        ("conv3x3:64*0", "at least 1"),
        ("conv0x3:64", "at least 1"),
        ("conv1x3+5x1:64", "1x3+3x1"),
        ("conv3x1+1x3:64", "1x3+3x1"),
        ("stack1x3+3x1:64", "1x3+3x1"),
        ("stack3x3:64x0", "at least 1"),
        ("bottleneck:1", "2 or more"),
        ("bottleneck3x5:64", "square"),
        ("depthwise1x3+3x1:8", "1x3+3x1"),
        ("pool:3", "write pool"),
        ("+pool", "write pool"),
        ("pool/0", "at least 1"),
        ("gap*2", "write gap alone"),
        ("lrn:5", "write lrn alone"),
        ("dropout", "write dropout:0.5"),
        ("dropout:1", "a chance below 1"),
        ("linear", "write linear:256"),
        ("linear:0", "whole"),
        ("linear:8/2", "write linear:256"),
        ("conv3x3:64 ", "write conv3x3:64"),
        ("conv3x3:\n64", "write conv3x3:64"),
    ],
)
def test_a_mistake_is_named_with_its_place_in_one_line(word, told):
    with pytest.raises(UsageError) as error:
        Custom(layers=["conv3x3:4", word]).build((1, 32, 32), 5)
    assert str(error.value).startswith(f"model.layers: {word!r} (number 2): ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("before", ["linear:5", "gap"])
def test_no_maps_are_left_behind_a_linear_layer(before):
    with pytest.raises(UsageError, match=r"'pool' \(number 2\): no maps are left behind linear or gap"):
        Custom(layers=[before, "pool"]).build((1, 8, 8), 5)


def test_pooling_of_one_pixel_is_refused():
    with pytest.raises(UsageError, match=r"'pool' \(number 4\): only 1x1"):
        Custom(layers=["pool"] * 5).build((1, 8, 8), 5)


def test_a_words_parts():
    word = read_word("+stack5x3:128x3/2*4", 7)
    assert (word.kind, word.shortcut, word.sides, word.filters) == ("stack", True, (5, 3), 128)
    assert (word.count, word.stride, word.times, word.place) == (3, 2, 4, 7)
    assert (read_word("stack3x3:8", 1).count, read_word("pool", 1).stride, read_word("avgpool", 1).sides) == (
        2,
        2,
        (2, 2),
    )


def test_the_list_can_be_typed_and_trains(engine):
    words = [
        "model=custom",
        "model.layers=[conv3x3:8,pool,+stack3x3:8x2*2,bottleneck1x3+3x1:16/2,dropout:0.5,linear:16]",
    ]
    code, _, said = engine("train", *words, "run.epochs=1", "run.steps=3", "run.device=cpu", "out=run")
    assert code == 0, said
    code, _, said = engine("train", "model=custom", "model.layers=[conv3x3:8,pol]", "out=other")
    assert code == 2
    assert "'pol' (number 2): no such kind of layer; did you mean 'pool'" in said
