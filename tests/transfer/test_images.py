"""What a network sees of pixels, and what is told where that is not what its weights were trained on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine.anatomy import Anatomy
from engine.interfaces import Records
from engine.pixels import Pixels, pixels_of
from engine.plugins.augment import Normalize, Resize
from engine.plugins.transfer import Head
from engine.plugins.transfer.images import differences
from engine.plugins.transfer.loading import take
from engine.plugins.transfer.weights import Given


@pytest.mark.parametrize(("mean", "std", "alike"), [(0.3, 0.2, True), (0.301, 0.2, True), (0.5, 0.2, False)])
def test_other_pixels_are_told_with_the_overrides(make, tmp_path, capsys, mean, std, alike):
    make("source", steps=1, augment={"normalize": Normalize(mean=[0.3], std=[0.2])}).fit()
    weights = str(tmp_path / "source")
    capsys.readouterr()
    make("next", transfer=Head(weights=weights), augment={"normalize": Normalize(mean=[mean], std=[std])})
    told = capsys.readouterr().out
    assert ("trained on pixels of" in told) == (not alike)
    if not alike:
        assert "pixels of -1.5 to 3.5, this run's are -2.5 to 2.5" in told
        assert "augment.normalize.mean=[0.3] augment.normalize.std=[0.2] makes them so" in told
    make("plain", transfer=Head(weights=weights), augment={})
    assert "this run's are 0 to 1" in capsys.readouterr().out


CARD = {"order": "bgr", "mean": [104, 117, 123], "scale": 0.5, "crop": 227, "classes": ["tench", "shark"]}


@pytest.mark.parametrize(
    ("seen", "lines"),
    [
        # Pixels as the card has them: (byte - mean) / 2, blue first
        (Pixels([-52, -58.5, -61.5], [75.5, 69, 66], [2, 1, 0], [227, 227]), []),
        (
            Pixels([-52, -58.5, -61.5], [75.5, 69, 66], [0, 1, 2], [96, 96]),
            [
                "in the order bgr, this run gives rgb: put channel_order into",
                "of 227x227, this run's are 96x96: augment=",
            ],
        ),
        (
            Pixels([0, 0, 0], [1, 1, 1], [2, 1, 0], [227, 227]),
            ["of -52 to 75.5, -58.5 to 69, -61.5 to 66, this run's are 0 to 1, 0 to 1, 0 to 1: augment.normalize."],
        ),
        (Pixels([0], [1], [0], [227, 227]), []),  # gray: another network
    ],
)
def test_a_card_of_caffe_is_compared(seen, lines):
    told = differences(Given("x", {}, facts={"preprocessing": CARD}), seen)
    assert len(told) == len(lines)
    for line, expected in zip(told, lines, strict=True):
        assert expected in line


@pytest.mark.parametrize(
    ("card", "seen", "line"),
    [
        ({"order": "rgb"}, Pixels([0] * 3, [255] * 3, [2, 1, 0], [227, 227]), "gives bgr: take channel_order out of"),
        ({"order": "bgr"}, Pixels([0] * 3, [255] * 3, [0, 1, 2], [227, 227]), "gives rgb: put channel_order into"),
    ],
)
def test_the_order_of_channels_is_turned_round_either_way(card, seen, line):
    facts = {"preprocessing": {**CARD, "mean": [0, 0, 0], "scale": 1, **card}}
    (told,) = differences(Given("x", {}, facts=facts), seen)
    assert line in told


def test_images_that_are_no_squares_are_scaled_to_not_cut_out():
    before = {"black": [0.0], "white": [1.0], "order": [0], "size": [64, 96]}
    (told,) = differences(Given("x", {}, facts={"pixels": before}), Pixels([0], [1], [0], [32, 32]))
    assert "of 64x96, this run's are 32x32: " in told
    words = dict(word.split("=") for word in told.split() if word.startswith("augment.resize."))
    resize = Resize(size=int(words["augment.resize.size"]), width=int(words["augment.resize.width"])).build()
    assert resize.test(torch.zeros(1, 1, 32, 32, dtype=torch.uint8)).shape[2:] == (64, 96)
    assert "center_crop" not in told


@pytest.mark.parametrize(("means", "lines"), [([0, 0, 0], 2), ([10, 20, 30], 1)])
def test_a_mean_image_that_the_model_does_not_subtract_is_told(means, lines):
    def build(outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(12, outputs))

    model, anatomy = build(2), Anatomy(build, 2, (3, 2, 2))
    image = torch.tensor([10.0, 20, 30])[:, None, None] + torch.tensor([[1.0, -1], [-1, 1]])
    facts = {"preprocessing": {**CARD, "mean": [0, 0, 0], "scale": 1, "mean_image": True, "crop": 0}}
    given = Given("x", {**model.state_dict(), "mean_image": image}, facts=facts)
    take(model, anatomy, given, ())
    seen = Pixels([-m for m in means], [255 - m for m in means], [2, 1, 0], [2, 2])
    told = differences(given, seen)
    assert len(told) == lines
    assert "this model subtracts none; its means over the pixels are 10, 20, 30 in the order bgr" in told[0]
    if lines > 1:
        assert "of -10 to 245, -20 to 235, -30 to 225, this run's are 0 to 255, 0 to 255, 0 to 255" in told[1]
    both = build(2)
    both.register_buffer("mean_image", torch.zeros(3, 2, 2))
    given.unused.clear()
    take(both, anatomy, given, ())
    assert differences(given, Pixels([0] * 3, [255] * 3, [2, 1, 0], [2, 2])) == []


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ({}, Pixels([0, 0, 0], [1, 1, 1], [0, 1, 2], [6, 8])),
        (
            {"n": Normalize(mean=[0.5, 0.25, 0], std=[0.5, 0.5, 2])},
            Pixels([-1, -0.5, 0], [1, 1.5, 0.5], [0, 1, 2], [6, 8]),
        ),
        ({"r": Resize(size=12)}, Pixels([0, 0, 0], [1, 1, 1], [0, 1, 2], [12, 16])),
    ],
)
def test_what_a_network_sees_of_pixels_is_found(augment, expected):
    found = pixels_of(Plain(), {name: options.build() for name, options in augment.items()})
    assert found is not None
    for field in ("black", "white", "order", "size"):
        assert list(getattr(found, field)) == pytest.approx(list(getattr(expected, field))), field
    mixed = SimpleNamespace(test=lambda images: images.float().mean(1, keepdim=True).repeat(1, 3, 1, 1))
    assert pixels_of(Plain(), {"gray": mixed}) is None


class Plain:
    """A source of black images of 6 x 8."""

    shape = (3, 6, 8)

    def records(self, indices):
        return Records("raw", torch.zeros(len(indices), 3, 6, 8, dtype=torch.uint8), torch.zeros(1))
