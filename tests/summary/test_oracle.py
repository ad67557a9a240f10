"""Every network against figures of other programs: parameters, multiply-adds, receptive field, bytes saved.

They are FlopCounterMode's on the reference implementations (Caffe's prototxt, torchvision's code), published counts of
parameters, and receptive fields that were worked out by hand or published (Araujo et al. 2019).
"""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from engine.plugins.summary.rows import table_of

from .tasks import foresight

# model, options, side of the image: parameters, 1e9 multiply-adds, field, stride, MiB saved for one of two images.
NETWORKS = [
    ("alexnet", {"fused_lrn": False}, 227, 60_965_224, 0.724, 195, 32, 11.9),
    ("alexnet", {"fused_lrn": False, "groups": 1}, 227, 62_378_344, 1.135, 195, 32, 11.9),
    ("nin", {}, 224, 7_595_176, 1.100, 195, 32, 8.6),
    ("vgg16", {}, 224, 138_357_544, 15.470, 212, 32, 69.9),
    ("vgg19", {}, 224, 143_667_240, 19.632, 268, 32, 74.8),
    ("googlenet", {"auxiliary": False}, 224, 6_998_552, 1.583, 715, 32, None),
    ("inception_v3", {"auxiliary": False}, 299, 23_834_568, 5.713, 1311, 32, 93.7),
    ("resnet18", {}, 224, 11_689_512, 1.814, 435, 32, 21.2),
    ("resnet34", {}, 224, 21_797_672, 3.664, 899, 32, 30.8),
    ("resnet50", {}, 224, 25_557_032, 4.089, 427, 32, 82.0),
    ("resnet50", {"stride_in": "1x1"}, 224, 25_557_032, 3.858, 483, 32, 78.0),
    ("resnet101", {}, 224, 44_549_160, 7.801, 971, 32, 121.2),
    ("resnet101", {"stride_in": "1x1"}, 224, 44_549_160, None, 1027, 32, None),
    ("resnet152", {}, 224, 60_192_808, 11.514, 1451, 32, 169.5),
    ("resnet152", {"stride_in": "1x1"}, 224, 60_192_808, None, 1507, 32, None),
    ("squeezenet", {}, 227, 1_248_424, 0.861, 155, 16, None),
    ("squeezenet", {"version": "1.1"}, 227, 1_235_496, 0.388, 207, 16, None),
    ("mobilenet", {}, 224, 4_231_976, 0.569, 315, 32, None),
]
SMALL = [
    ("cifar10_quick", 3, 32, 145_578, 12.35),
    ("cifar10_full", 3, 32, 89_578, 12.30),
    ("lenet", 1, 28, 431_080, 2.29),
]


def marked(row: tuple) -> object:
    """Return a row as a parameter; some of the deepest are looked at in long runs alone."""
    long = row[0] == "resnet101" or (row[0] == "resnet152" and bool(row[1]))
    name = " ".join((row[0], *map(str, row[1].values())))
    return pytest.param(*row, id=name, marks=[pytest.mark.soak] if long else [])


@pytest.mark.parametrize(
    ("model", "given", "side", "parameters", "giga", "field", "stride", "saved"),
    [marked(row) for row in NETWORKS],
)
def test_a_network_is_as_published(model, given, side, parameters, giga, field, stride, saved):
    table = table_of(foresight(model, (3, side, side), 1000, **given), 2)
    assert table.trainable == parameters
    assert table.frozen == 0
    assert table.fields.last.size == (field, field)
    assert table.fields.last.stride == (stride, stride)
    assert table.fields.gaps == ()
    if giga is not None:
        assert round(table.multiply_adds / 1e9, 3) == giga
    if saved is not None:
        assert round(table.saved / 2**20, 1) == saved


@pytest.mark.parametrize(("model", "channels", "side", "parameters", "mega"), SMALL)
def test_a_small_network_is_as_published(model, channels, side, parameters, mega):
    table = table_of(foresight(model, (channels, side, side), 10), 2)
    assert table.trainable == parameters
    assert round(table.multiply_adds / 1e6, 2) == mega


@pytest.mark.parametrize("model", ["resnet20", "cnn", "squeezenet", "mobilenet"])
def test_multiply_adds_are_half_of_torchs_own_count(model):
    seen = foresight(model, (3, 64, 64), 10)
    with seen.imagined(), FlopCounterMode(display=False) as counter:
        seen.model(seen.images(3))
    assert 2 * 3 * table_of(seen, 3).multiply_adds == counter.get_total_flops()
