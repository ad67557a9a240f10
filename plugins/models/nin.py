"""Network in network (Lin, Chen, Yan 2013), in the form that its authors published for ImageNet."""

from __future__ import annotations

from torch import Tensor, nn

from .initial import gaussian
from .sizes import require_size

NARROW = {"conv1", "conv3", "cccp8-1024"}  # layers whose weights start with 0.01; the others with 0.05


class NIN(nn.Sequential):
    """Four convolutions, each followed by two 1x1 ones, and the mean of the last maps as scores: no linear layer.

    [n, channels, height, width] (39x39 at least; 224x224 in the paper) -> [n, outputs]; 7,595,176 parameters for colour
    images of 1,000 classes. Pooling is 3x3 with stride 2 and keeps an incomplete last window, as Caffe's. The last maps
    pass through a ReLU, as published. Names, initial weights (normal, 0.05 or 0.01) and the dropout before the fourth
    convolution are those of the authors' Caffe network, whose weights fit. Raises UsageError for smaller images.
    """

    def __init__(self, inputs: tuple[int, int, int], outputs: int, dropout: float = 0.5) -> None:
        super().__init__()
        self._unit(("conv1", "cccp1", "cccp2"), nn.Conv2d(inputs[0], 96, 11, 4), 96, 96)
        self.pool0 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self._unit(("conv2", "cccp3", "cccp4"), nn.Conv2d(96, 256, 5, padding=2), 256, 256)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self._unit(("conv3", "cccp5", "cccp6"), nn.Conv2d(256, 384, 3, padding=1), 384, 384)
        self.pool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.drop = nn.Dropout(dropout)
        last = ("conv4-1024", "cccp7-1024", "cccp8-1024")
        self._unit(last, nn.Conv2d(384, 1024, 3, padding=1), 1024, outputs)
        require_size("nin", [self], inputs)
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d):
                gaussian(layer, 0.01 if name in NARROW else 0.05)

    def _unit(self, names: tuple[str, str, str], first: nn.Conv2d, middle: int, last: int) -> None:
        """Add a convolution and two of 1x1: a small perceptron of its own at every place."""
        layers = (first, nn.Conv2d(first.out_channels, middle, 1), nn.Conv2d(middle, last, 1))
        for name, layer in zip(names, layers, strict=True):
            self.add_module(name, layer)
            self.add_module(f"relu_{name}", nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        return super().forward(images)
