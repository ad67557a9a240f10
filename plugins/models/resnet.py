"""Residual networks for CIFAR (He et al. 2015, "Deep residual learning for image recognition", section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from engine import UsageError
from engine.layers import StochasticDepth


class Block(nn.Module):
    """Two 3x3 convolutions and the sum with their input.

    Where the size halves, the shortcut takes every second pixel and adds channels of zeros, as many before as
    after the others: the paper's option A, which has no parameters. The convolutions' part may be dropped in training
    (``survival`` below 1: stochastic depth).
    """

    def __init__(self, channels: int, filters: int, stride: int, survival: float = 1.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.stride, self.added = stride, (filters - channels) // 2
        self.depth = StochasticDepth(survival) if survival < 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, filters, height / stride, width / stride], rounded up."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.depth is not None:
            y = self.depth(y)
        if self.added:
            x = x[:, :, :: self.stride, :: self.stride]
            x = nn.functional.pad(x, (0, 0, 0, 0, self.added, self.added))
        return self.relu2(y + x)


class ResNet(nn.Module):
    """A 3x3 convolution, three stages of (depth - 2) / 6 blocks with 16, 32 and 64 filters, and a linear layer.

    [n, channels, height, width] -> [n, outputs]. Convolutions and the linear layer start as He et al. 2015
    ("Delving deep into rectifiers") say, with their fan-in. Parameter names are those of the common PyTorch
    weights for CIFAR-10. With ``survival`` below 1 the residual of block l of L is kept with probability
    1 - l/L (1 - survival) in training: the linear decay of Huang et al. 2016 ("Deep networks with stochastic depth").
    Raises UsageError for a depth that is not 6n + 2.
    """

    def __init__(self, inputs: tuple[int, int, int], outputs: int, depth: int = 20, survival: float = 1.0) -> None:
        super().__init__()
        if depth % 6 != 2:
            raise UsageError(f"model.depth={depth}: must be 6n + 2, such as 20, 32, 44, 56 or 110")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(inputs[0], 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        kept = [1 - block / (3 * blocks) * (1 - survival) for block in range(1, 3 * blocks + 1)]
        self.layer1 = _stage(16, 16, 1, kept[:blocks])
        self.layer2 = _stage(16, 32, 2, kept[blocks : 2 * blocks])
        self.layer3 = _stage(32, 64, 2, kept[2 * blocks :])
        self.linear = nn.Linear(64, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(channels: int, filters: int, stride: int, survivals: Sequence[float]) -> nn.Sequential:
    first = Block(channels, filters, stride, survivals[0])
    return nn.Sequential(first, *(Block(filters, filters, 1, survival) for survival in survivals[1:]))
