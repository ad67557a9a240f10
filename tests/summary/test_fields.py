"""Receptive fields against gradients: the pixels that one unit of a real network depends on."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from engine.plugins.summary.fields import fields_of


class Branches(nn.Module):
    """Asymmetric kernels beside pooling, joined and cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, 2, 1)
        self.wide = nn.Conv2d(2, 2, (1, 5), padding=(0, 2))
        self.tall = nn.Conv2d(2, 2, (7, 1), padding=(3, 0))
        self.dilated = nn.Conv2d(2, 2, 3, padding=2, dilation=2)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat((self.tall(self.wide(x)), functional.avg_pool2d(x, 3, 1, 1), x), 1)
        x = self.dilated(x[:, 1:3]) + functional.pad(x[:, :2], (0, 0, 0, 0))
        return x[:, :, 1::2, ::2]


class Padded(nn.Module):
    """Padding by a function, and a convolution that pads less on one side of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 4, 2)

    def forward(self, x):
        return functional.max_pool2d(self.conv(functional.pad(x, (3, 2, 1, 2))), 2, stride=2)


class ByNumbers(nn.Module):
    """Computes what the numbers say."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


NETWORKS = {
    "a row": lambda: nn.Sequential(nn.Conv2d(1, 2, 5, 2, 2), nn.ReLU(), nn.AvgPool2d(3, 2), nn.Conv2d(2, 1, 3, 1, 1)),
    "branches": Branches,
    "padded": Padded,
}


def pixels(network: nn.Module, side: int, row: int, column: int) -> tuple[list[int], list[int]]:
    """Return the first and the last row and column that a unit in the middle depends on."""
    network = network.double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)  # so that nothing cancels
    images = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    network(images)[0, :, row, column].sum().backward()
    _, _, rows, columns = images.grad.nonzero(as_tuple=True)
    return [int(rows.min()), int(rows.max())], [int(columns.min()), int(columns.max())]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_unit_depends_on_the_pixels_of_its_field(name, monkeypatch):
    # Maximum pooling passes a gradient to one pixel: the mean's looks at the same ones.
    means = lambda x, size, stride=None, **more: functional.avg_pool2d(x, size, stride)  # noqa: E731
    network = NETWORKS[name]()
    side, row, column = 80, 4, 5
    field = fields_of(network, torch.zeros(1, 1, side, side)).last
    monkeypatch.setattr(functional, "max_pool2d", means)
    found = pixels(network, side, row, column)
    for axis, place in enumerate((row, column)):
        first = field.start[axis] + place * field.stride[axis]
        assert found[axis] == [first, first + field.size[axis] - 1]


def test_kernels_of_two_sides_have_two_fields():
    field = fields_of(nn.Sequential(nn.Conv2d(1, 1, (1, 3)), nn.Conv2d(1, 1, (7, 1), (2, 1))), torch.zeros(1, 1, 9, 9))
    assert field.last.size == (7, 3)
    assert field.last.stride == (2, 1)


def test_global_pooling_sees_everything_that_its_maps_do():
    network = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    fields = fields_of(network, torch.zeros(1, 1, 16, 16))
    assert fields.last.size == (3, 3)
    assert fields.by_module["1"].size == (17, 17)  # 3 + 7 strides of 2
    assert fields.by_module["3"].size == (17, 17)


def test_what_cannot_be_traced_is_told_and_has_none():
    network = nn.Sequential(nn.Conv2d(1, 1, 3), ByNumbers(), nn.Conv2d(1, 1, 3))
    fields = fields_of(network, torch.zeros(1, 1, 9, 9))
    assert fields.by_module["0"].size == (3, 3)
    assert "2" not in fields.by_module
    assert fields.last is None
    assert fields.gaps == ("not known from 1 on: ByNumbers",)


def test_a_model_that_cannot_be_traced_at_all_is_told():
    assert "cannot be traced" in fields_of(ByNumbers(), torch.zeros(1, 1, 9, 9)).gaps[0]
