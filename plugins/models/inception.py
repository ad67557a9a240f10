"""Inception-v3 (Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .sizes import require_size

Kernel = int | tuple[int, int]
TALL, WIDE = (7, 1), (1, 7)
SPREAD = {"AuxLogits.conv1.conv": 0.01, "AuxLogits.fc": 0.001}  # standard deviations other than 0.1


class Convolution(nn.Module):
    """A convolution without bias, BatchNorm and ReLU; ``same``: padded by half the kernel."""

    def __init__(self, channels: int, filters: int, kernel: Kernel, stride: int = 1, same: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same else (0, 0)
        self.conv = nn.Conv2d(channels, filters, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(filters, eps=1e-3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps."""
        return self.relu(self.bn(self.conv(x)))


class FactorisedTo3x3(nn.Module):
    """The modules at 35x35: 1x1; 5x5; two 3x3 in place of another 5x5; pooling; each behind a 1x1 (figure 5)."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(channels, 64, 1)
        self.branch5x5_1 = Convolution(channels, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5)
        self.branch3x3dbl_1 = Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3)
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.branch_pool = Convolution(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 224 + pooled, height, width]."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch1x1(x), five, threes, self.branch_pool(self.pool(x))), 1)


class To17x17(nn.Module):
    """From 35x35 to 17x17: one and two 3x3 with the stride, beside pooling (figure 10)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(channels, 384, 3, 2, same=False)
        self.branch3x3dbl_1 = Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, 2, same=False)
        self.pool = nn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 480 + channels, (height - 1) / 2, (width - 1) / 2], rounded down."""
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), threes, self.pool(x)), 1)


class FactorisedTo1x7(nn.Module):
    """The modules at 17x17: every 7x7 is a 1x7 and a 7x1 (figure 6), in ``narrow`` channels."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(channels, 192, 1)
        self.branch7x7_1 = Convolution(channels, narrow, 1)
        self.branch7x7_2 = Convolution(narrow, narrow, WIDE)
        self.branch7x7_3 = Convolution(narrow, 192, TALL)
        self.branch7x7dbl_1 = Convolution(channels, narrow, 1)
        self.branch7x7dbl_2 = Convolution(narrow, narrow, TALL)
        self.branch7x7dbl_3 = Convolution(narrow, narrow, WIDE)
        self.branch7x7dbl_4 = Convolution(narrow, narrow, TALL)
        self.branch7x7dbl_5 = Convolution(narrow, 192, WIDE)
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.branch_pool = Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 768, height, width]."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        sevens = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        sevens = self.branch7x7dbl_5(self.branch7x7dbl_4(sevens))
        return torch.cat((self.branch1x1(x), seven, sevens, self.branch_pool(self.pool(x))), 1)


class To8x8(nn.Module):
    """From 17x17 to 8x8: a 3x3, and a 7x7 in two parts with a 3x3, both with the stride, beside pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(channels, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, 2, same=False)
        self.branch7x7x3_1 = Convolution(channels, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, WIDE)
        self.branch7x7x3_3 = Convolution(192, 192, TALL)
        self.branch7x7x3_4 = Convolution(192, 192, 3, 2, same=False)
        self.pool = nn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 512 + channels, (height - 1) / 2, (width - 1) / 2], rounded down."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        sevens = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat((three, self.branch7x7x3_4(sevens), self.pool(x)), 1)


class Widened(nn.Module):
    """The modules at 8x8: 1x3 and 3x1 side by side, so that there are more maps (figure 7)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(channels, 320, 1)
        self.branch3x3_1 = Convolution(channels, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, (1, 3))
        self.branch3x3_2b = Convolution(384, 384, (3, 1))
        self.branch3x3dbl_1 = Convolution(channels, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3)
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1))
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.branch_pool = Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 2048, height, width]."""
        three = self.branch3x3_1(x)
        threes = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = (
            self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three),
            self.branch3x3dbl_3a(threes), self.branch3x3dbl_3b(threes), self.branch_pool(self.pool(x)),
        )  # fmt: skip
        return torch.cat(parts, 1)


class AuxiliaryHead(nn.Module):
    """5x5 means with stride 3, a 1x1 and a 5x5 convolution, the mean of the maps, a linear layer."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, 3)
        self.conv0 = Convolution(channels, 128, 1)
        self.conv1 = Convolution(128, 768, 5, same=False)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(768, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's scores."""
        return self.fc(self.flatten(self.avgpool(self.conv1(self.conv0(self.pool(x))))))


class InceptionV3(nn.Module):
    """Five convolutions, eleven inception modules in five forms, the mean of the maps and one linear layer.

    [n, channels, height, width] (75x75 at least, with the auxiliary head 299x299, which is the paper's size) -> [n,
    outputs]; 23,834,568 parameters for colour images of 1,000 classes, without the auxiliary head. In training it
    returns [main, auxiliary]; in evaluation, or with auxiliary=False, the main scores alone. Parameter names are
    torchvision's, so that its weights fit. Weights start from a normal distribution with standard deviation 0.1 (0.01
    and 0.001 in the auxiliary head) that is cut at two of them, as the authors published it for TensorFlow. Raises
    UsageError for smaller images.
    """

    def __init__(
        self, inputs: tuple[int, int, int], outputs: int, auxiliary: bool = True, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(inputs[0], 32, 3, 2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, same=False)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        stem = list(self.children())
        self.Mixed_5b = FactorisedTo3x3(192, 32)
        self.Mixed_5c = FactorisedTo3x3(256, 64)
        self.Mixed_5d = FactorisedTo3x3(288, 64)
        self.Mixed_6a = To17x17(288)
        self.Mixed_6b = FactorisedTo1x7(768, 128)
        self.Mixed_6c = FactorisedTo1x7(768, 160)
        self.Mixed_6d = FactorisedTo1x7(768, 160)
        self.Mixed_6e = FactorisedTo1x7(768, 192)
        self.AuxLogits = AuxiliaryHead(768, outputs) if auxiliary else None
        if self.AuxLogits is not None:
            head = [*stem, self.Mixed_6a.pool, *self.AuxLogits.children()]
            require_size("inception_v3", head, inputs, ", or, from 75x75 on, set model.auxiliary=false")
        require_size("inception_v3", [*stem, self.Mixed_6a.pool, nn.MaxPool2d(3, 2)], inputs)
        self.Mixed_7a = To8x8(768)
        self.Mixed_7b = Widened(1280)
        self.Mixed_7c = Widened(2048)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(2048, outputs)
        _draw(self)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Return the scores; in training with the auxiliary head [main, auxiliary]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x))))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        middle = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(middle)))
        scores = self.fc(self.flatten(self.dropout(self.avgpool(x))))
        if self.training and self.AuxLogits is not None:
            return [scores, self.AuxLogits(middle)]
        return scores


def _draw(network: InceptionV3) -> None:
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            deviation = SPREAD.get(name, 0.1)
            nn.init.trunc_normal_(layer.weight, 0.0, deviation, -2 * deviation, 2 * deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
