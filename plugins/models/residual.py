"""Residual networks for ImageNet (He et al. 2015, "Deep residual learning for image recognition", table 1)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from engine.layers import StochasticDepth

from .initial import gaussian, he, layers_of

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
DEEP = 50  # from here on blocks are bottlenecks


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the sum with their input, which passes a 1x1 convolution where the shape changes.

    [n, channels, height, width] -> [n, filters, height / stride, width / stride], rounded up. The convolutions' part
    may be dropped in training (``survival`` below 1: stochastic depth).
    """

    expansion = 1

    def __init__(self, channels: int, filters: int, stride: int, survival: float = 1.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu2 = nn.ReLU()
        self.downsample = _projection(channels, filters, stride)
        self.depth = StochasticDepth(survival) if survival < 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's maps."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.depth(self.bn2(self.conv2(y)))
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1 to a quarter of the channels, 3x3, 1x1 back, and the sum with their input, as in ``BasicBlock``.

    [n, channels, height, width] -> [n, 4 x filters, height / stride, width / stride], rounded up. stride_in: the
    convolution that has the stride, "1x1" (the first, as in the paper; "v1") or "3x3" ("v1.5").
    """

    expansion = 4

    def __init__(self, channels: int, filters: int, stride: int, survival: float = 1.0, stride_in: str = "3x3") -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(channels, filters, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(filters, filters, 3, second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(filters, 4 * filters, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * filters)
        self.relu3 = nn.ReLU()
        self.downsample = _projection(channels, 4 * filters, stride)
        self.depth = StochasticDepth(survival) if survival < 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's maps."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.depth(self.bn3(self.conv3(y)))
        return self.relu3(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A 7x7 convolution, 3x3 pooling, four stages of blocks, the mean of the maps, and a linear layer.

    [n, channels, height, width], of any size (224x224 in the paper) -> [n, outputs]. depth: 18, 34 (basic blocks), 50,
    101, 152 (bottlenecks). Parameter names are torchvision's, so that its weights fit; those are of stride_in="3x3".
    Convolutions start as He et al. 2015 ("Delving deep into rectifiers") say, with their fan-out, the linear layer with
    standard deviation 0.01; zero_init: with every block's last BatchNorm at 0 (Goyal et al. 2017, "Accurate, large
    minibatch SGD", section 5.1). survival: as of the CIFAR networks, stochastic depth with linear decay.
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        depth: int = 50,
        stride_in: str = "3x3",
        zero_init: bool = False,
        survival: float = 1.0,
    ) -> None:
        super().__init__()
        block = partial(Bottleneck, stride_in=stride_in) if depth >= DEEP else BasicBlock
        expansion = Bottleneck.expansion if depth >= DEEP else BasicBlock.expansion
        self.conv1 = nn.Conv2d(inputs[0], 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        total = sum(STAGES[depth])
        kept = iter([1 - number / total * (1 - survival) for number in range(1, total + 1)])
        channels, stages = 64, []
        for stage, blocks in enumerate(STAGES[depth]):
            filters, made = 64 * 2**stage, []
            for number in range(blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                made.append(block(channels, filters, stride, next(kept)))
                channels = expansion * filters
            stages.append(nn.Sequential(*made))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, outputs)
        for layer in layers_of(self):
            he(layer, "fan_out")
        gaussian(self.fc, 0.01)
        if zero_init:
            _silence(self.modules())

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.flatten(self.avgpool(x)))


def _projection(channels: int, filters: int, stride: int) -> nn.Sequential | None:
    """Return the shortcut of a block that changes the shape: the paper's option B; None where it does not."""
    if stride == 1 and channels == filters:
        return None
    return nn.Sequential(nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))


def _silence(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
