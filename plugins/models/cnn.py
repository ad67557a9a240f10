"""A small modern ConvNet, good on small images within seconds."""

from __future__ import annotations

from torch import Tensor, nn

from engine import UsageError
from engine.layers import DropConnectLinear


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with batch normalisation and ReLU, the last two after 2x2 maximum pooling.

    [n, channels, height, width] (8x8 at least) -> [n, outputs]. Global average pooling before the linear layer
    makes the number of parameters independent of the image size. Convolutions start as He et al. 2015
    ("Delving deep into rectifiers") say, with their fan-out. With ``drop_connect``, training drops weights of the
    linear layer.
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        width: int = 32,
        dropout: float = 0.0,
        drop_connect: float = 0.0,
    ) -> None:
        super().__init__()
        channels, *size = inputs
        if min(size) < 8:
            raise UsageError(f"model=cnn needs images of at least 8x8, not {size[0]}x{size[1]}: use larger images")
        self.conv1, self.bn1 = _convolution(channels, width)
        self.conv2, self.bn2 = _convolution(width, 2 * width)
        self.conv3, self.bn3 = _convolution(2 * width, 4 * width)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        if drop_connect:
            self.linear: nn.Linear = DropConnectLinear(4 * width, outputs, p=drop_connect)
        else:
            self.linear = nn.Linear(4 * width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        x = self.relu1(self.bn1(self.conv1(images)))
        x = self.relu2(self.bn2(self.conv2(nn.functional.max_pool2d(x, 2))))
        x = self.relu3(self.bn3(self.conv3(nn.functional.max_pool2d(x, 2))))
        return self.linear(self.dropout(x.mean((2, 3))))


def _convolution(channels: int, filters: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(filters)
