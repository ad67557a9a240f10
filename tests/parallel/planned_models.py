"""Networks that plans are tested with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine import Model


class AlexNet(nn.Module):
    """Krizhevsky's network of one tower: 61.1 million parameters, 96 % of them in three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(),
        )  # fmt: skip
        self.fc6, self.fc7, self.fc8 = nn.Linear(9216, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc8(torch.relu(self.fc7(torch.relu(self.fc6(self.features(images))))))


@dataclass
class Wide(Model):
    """A convolution with BatchNorm and three linear layers of 0.8 million parameters, for 6x6 images."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs[0], 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, outputs),
        )  # fmt: skip
