"""Caffe's two example networks for CIFAR-10, cifar10_quick and cifar10_full (after Krizhevsky's cuda-convnet)."""

from __future__ import annotations

from torch import Tensor, nn

from engine.normalization import WithinChannelNorm

from .initial import gaussian
from .sizes import features, require_size


class Cifar10(nn.Sequential):
    """Three 5x5 convolutions with 3x3 pooling at stride 2, then two linear layers (quick), or one (full).

    [n, channels, height, width] (8x8 at least) -> [n, outputs]; 145,578 parameters (quick) and 89,578 (full) for
    CIFAR-10. The first pooling takes maxima, before its ReLU, the others means; all keep an incomplete last window.
    ``full`` normalises within channels behind the first two. No non-linearity is between quick's linear layers, as
    published. Layers have Caffe's names and initial weights: normal with standard deviation 1e-4 for the first
    convolution, 0.01 for the others, 0.1 (quick) or 0.01 (full) for the linear layers.
    """

    def __init__(self, inputs: tuple[int, int, int], outputs: int, full: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs[0], 32, 5, padding=2)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.relu1 = nn.ReLU()
        if full:
            self.norm1 = WithinChannelNorm()
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.AvgPool2d(3, 2, ceil_mode=True)
        if full:
            self.norm2 = WithinChannelNorm()
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.relu3 = nn.ReLU()
        self.pool3 = nn.AvgPool2d(3, 2, ceil_mode=True)
        require_size("cifar10_full" if full else "cifar10_quick", [self], inputs)
        left = features([self], inputs, 64)
        self.flatten = nn.Flatten()
        self.ip1 = nn.Linear(left, outputs if full else 64)
        if not full:
            self.ip2 = nn.Linear(64, outputs)
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d):
                gaussian(layer, 1e-4 if name == "conv1" else 0.01)
            elif isinstance(layer, nn.Linear):
                gaussian(layer, 0.01 if full else 0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        return super().forward(images)
