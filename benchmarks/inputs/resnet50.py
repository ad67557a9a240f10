"""ResNet-50 in plain torch (He et al. 2015, "Deep residual learning for image recognition", table 1)."""

from __future__ import annotations

from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1, the last with four times the filters, and the sum with a shortcut.

    The 3x3 has the stride, as in torchvision and most weights; where shapes differ the shortcut is a 1x1 convolution.
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, filters, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(inplace=True),
            nn.Conv2d(filters, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(inplace=True),
            nn.Conv2d(filters, 4 * filters, 1, bias=False), nn.BatchNorm2d(4 * filters),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != 4 * filters:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, 4 * filters, 1, stride, bias=False), nn.BatchNorm2d(4 * filters)
            )
        self.rectify = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 4 filters, h / stride, w / stride]."""
        return self.rectify(self.body(x) + self.shortcut(x))


class ResNet50(nn.Sequential):
    """[n, 3, 224, 224] -> [n, outputs]; stages of 3, 4, 6 and 3 blocks."""

    def __init__(self, outputs: int) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        ]  # fmt: skip
        channels = 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            filters = 64 << stage
            for block in range(blocks):
                layers.append(Bottleneck(channels, filters, 2 if stage and block == 0 else 1))
                channels = 4 * filters
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))
