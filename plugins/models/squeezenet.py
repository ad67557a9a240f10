"""SqueezeNet (Iandola et al. 2016), versions 1.0 and 1.1, as its authors published them for Caffe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .initial import gaussian, layers_of, xavier
from .sizes import require_size

WIDTHS = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}
"""Filters of each fire module: s1x1, and e1x1 = e3x3 (the paper's table 1)."""
POOLED = {"1.0": (4, 8), "1.1": (3, 5)}
"""The fire modules that maximum pooling follows."""


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side, each with ReLU.

    [n, channels, height, width] -> [n, 2 x expanded, height, width].
    """

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeezed, 1)
        self.relu_squeeze1x1 = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.relu_expand1x1 = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.relu_expand3x3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of both, the 1x1 convolution's first."""
        x = self.relu_squeeze1x1(self.squeeze1x1(x))
        return torch.cat((self.relu_expand1x1(self.expand1x1(x)), self.relu_expand3x3(self.expand3x3(x))), 1)


class SqueezeNet(nn.Sequential):
    """A convolution, eight fire modules and a 1x1 convolution whose maps' means are the scores.

    [n, channels, height, width] (21x21 at least for 1.0, 17x17 for 1.1; 227x227 in Caffe) -> [n, outputs]; 1,248,424
    and 1,235,496 parameters for colour images of 1,000 classes. Version 1.1 starts with 64 filters of 3x3 instead of 96
    of 7x7, and pools earlier. The last convolution of 1.0 pads by 1, as published. Pooling is 3x3 with stride 2 and
    keeps an incomplete last window. Names and initial weights (Caffe's "xavier"; normal with 0.01 for the last) are the
    authors', whose weights fit. Raises UsageError for smaller images.
    """

    def __init__(self, inputs: tuple[int, int, int], outputs: int, version: str = "1.0", dropout: float = 0.5) -> None:
        super().__init__()
        old = version == "1.0"
        channels = 96 if old else 64
        self.conv1 = nn.Conv2d(inputs[0], channels, 7 if old else 3, 2)
        self.relu_conv1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        for number, (squeezed, expanded) in WIDTHS.items():
            self.add_module(f"fire{number}", Fire(channels, squeezed, expanded))
            channels = 2 * expanded
            if number in POOLED[version]:
                self.add_module(f"pool{number}", nn.MaxPool2d(3, 2, ceil_mode=True))
        require_size("squeezenet", [self], inputs)
        self.drop9 = nn.Dropout(dropout)
        self.conv10 = nn.Conv2d(channels, outputs, 1, padding=1 if old else 0)
        self.relu_conv10 = nn.ReLU()
        self.pool10 = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        for layer in layers_of(self):
            xavier(layer)
        gaussian(self.conv10, 0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        return super().forward(images)
