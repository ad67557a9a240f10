"""MobileNet, version 1 (Howard et al. 2017, "MobileNets: efficient convolutional neural networks")."""

from __future__ import annotations

from torch import Tensor, nn

from .blocks import DepthwiseSeparable
from .initial import gaussian, he, layers_of

BLOCKS = {
    "conv2_1": (64, 1), "conv2_2": (128, 2), "conv3_1": (128, 1), "conv3_2": (256, 2), "conv4_1": (256, 1),
    "conv4_2": (512, 2), "conv5_1": (512, 1), "conv5_2": (512, 1), "conv5_3": (512, 1), "conv5_4": (512, 1),
    "conv5_5": (512, 1), "conv5_6": (1024, 2), "conv6": (1024, 1),
}  # fmt: skip
"""Filters and stride of each block, the paper's table 1, by the names of the common Caffe weights."""


class MobileNet(nn.Module):
    """A 3x3 convolution with stride 2, thirteen depthwise separable blocks, the mean of the maps, a linear layer.

    [n, channels, height, width], of any size (224x224 in the paper) -> [n, outputs]; 4,231,976 parameters for colour
    images of 1,000 classes at width 1. width: by what every layer's filters are multiplied (the paper's alpha), 8 of
    them at least. Convolutions start as He et al. 2015 ("Delving deep into rectifiers") say, with their fan-in; the
    paper does not.
    """

    def __init__(self, inputs: tuple[int, int, int], outputs: int, width: float = 1.0) -> None:
        super().__init__()
        channels = _thinned(32, width)
        self.conv1 = nn.Conv2d(inputs[0], channels, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.blocks = nn.Sequential()
        for name, (filters, stride) in BLOCKS.items():
            self.blocks.add_module(
                name, DepthwiseSeparable(channels, _thinned(filters, width), stride, batch_norm=True)
            )
            channels = _thinned(filters, width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, outputs)
        for layer in layers_of(self):
            he(layer)
        gaussian(self.fc, 0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        x = self.blocks(self.relu1(self.bn1(self.conv1(images))))
        return self.fc(self.flatten(self.avgpool(x)))


def _thinned(filters: int, width: float) -> int:
    return max(8, int(filters * width))
