"""Convolutions of well-known networks, as data. Sizes are those of 224x224 images.

AlexNet as in Krizhevsky 2014 (one tower), VGG-16 (Simonyan and Zisserman 2014), GoogLeNet (Szegedy et al. 2014),
ResNet-50 (He et al. 2015; strides in its 3x3 layers), MobileNet (Howard et al. 2017), MobileNetV3 (Howard et al.
2019), ConvNeXt (Liu et al. 2022), RepLKNet (Ding et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.interfaces import DIRECTIONS, ConvSpec


@dataclass(frozen=True)
class Conv:
    """One layer: channels to filters, on images of ``size`` x ``size``; it occurs ``times`` in its network.

    padding: None for half the kernel. first: it sees the images themselves, whose gradient nobody needs.
    """

    name: str
    channels: int
    filters: int
    size: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    first: bool = False
    times: int = 1

    def spec(self, batch: int, device: str = "cpu") -> ConvSpec:
        """Return the convolution of so many images, in NHWC order."""
        padding = self.kernel // 2 if self.padding is None else self.padding
        return ConvSpec.of(
            (batch, self.channels, self.size, self.size),
            (self.filters, self.channels // self.groups, self.kernel, self.kernel),
            (self.stride, self.stride), (padding, padding), groups=self.groups, channels_last=True, device=device,
        )  # fmt: skip

    @property
    def directions(self) -> tuple[str, ...]:
        """What training computes of the layer."""
        return tuple(d for d in DIRECTIONS if not (self.first and d == "backward_input"))

    def text(self) -> str:
        """Return the layer in a word or two, for tables."""
        kind = "depthwise" if self.groups > 1 else f"{self.channels}->{self.filters}"
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{self.name}: {kind} {self.kernel}x{self.kernel}{stride} @{self.size}"


def depthwise(name: str, channels: int, size: int, kernel: int, stride: int = 1) -> Conv:
    """Return a layer in which every channel has a filter of its own."""
    return Conv(name, channels, channels, size, kernel, stride, groups=channels)


# The 3x3 layers of VGG-16 with at least 64 input channels; equal ones are measured once and count as often as they are.
VGG = (
    Conv("VGG 1_2", 64, 64, 224),
    Conv("VGG 2_1", 64, 128, 112),
    Conv("VGG 2_2", 128, 128, 112),
    Conv("VGG 3_1", 128, 256, 56),
    Conv("VGG 3_2, 3_3", 256, 256, 56, times=2),
    Conv("VGG 4_1", 256, 512, 28),
    Conv("VGG 4_2, 4_3", 512, 512, 28, times=2),
    Conv("VGG 5_1 to 5_3", 512, 512, 14, times=3),
)

# 1x1 layers: ResNet-50's bottlenecks, GoogLeNet's reductions and projections, MobileNet's pointwise layers.
POINTWISE = (
    Conv("ResNet 2a in", 256, 64, 56, 1),
    Conv("ResNet 2a out", 64, 256, 56, 1),
    Conv("ResNet 3b in", 512, 128, 28, 1),
    Conv("ResNet 3b out", 128, 512, 28, 1),
    Conv("ResNet 4b in", 1024, 256, 14, 1),
    Conv("ResNet 4b out", 256, 1024, 14, 1),
    Conv("ResNet 5b out", 512, 2048, 7, 1),
    Conv("GoogLeNet 3a 1x1", 192, 64, 28, 1),
    Conv("GoogLeNet 4e 3x3 in", 528, 160, 14, 1),
    Conv("GoogLeNet 5b 1x1", 832, 384, 7, 1),
    Conv("MobileNet 1", 32, 64, 112, 1),
    Conv("MobileNet 3", 128, 128, 56, 1),
    Conv("MobileNet 7", 512, 512, 14, 1),
    Conv("MobileNet 13", 1024, 1024, 7, 1),
)

DEPTHWISE = (
    depthwise("MobileNetV3 120@28", 120, 28, 5),
    depthwise("ConvNeXt 96@56", 96, 56, 7),
    depthwise("RepLKNet 128@56", 128, 56, 31),
)

# What the assignment of Stanford's CS231n convolves, and the layer that naive loops are measured on beside it.
ASSIGNMENT = Conv("assignment", 3, 25, 31, 3, 2, 1, first=True)
COMMON = Conv("common", 64, 64, 56)

# Where the Fourier transform is measured: these kernels, on the same images.
LARGE = tuple(Conv("large filters", 64, 64, 56, kernel) for kernel in (5, 7, 11, 15, 31))

# Forty layers as networks mix them, for ``kernels=auto``.
MIXED = (
    Conv("AlexNet 1", 3, 64, 224, 11, 4, 2, first=True),
    Conv("AlexNet 2", 64, 192, 27, 5),
    Conv("AlexNet 3", 192, 384, 13),
    Conv("AlexNet 4", 384, 256, 13),
    Conv("AlexNet 5", 256, 256, 13),
    Conv("VGG 1_1", 3, 64, 224, first=True),
    Conv("VGG 1_2", 64, 64, 224),
    Conv("VGG 2_2", 128, 128, 112),
    Conv("VGG 3_2", 256, 256, 56),
    Conv("VGG 4_1", 256, 512, 28),
    Conv("VGG 4_2", 512, 512, 28),
    Conv("VGG 5_1", 512, 512, 14),
    Conv("GoogLeNet 2 reduce", 64, 64, 56, 1),
    Conv("GoogLeNet 2", 64, 192, 56),
    Conv("GoogLeNet 3a 1x1", 192, 64, 28, 1),
    Conv("GoogLeNet 3a 3x3", 96, 128, 28),
    Conv("GoogLeNet 3a 5x5", 16, 32, 28, 5),
    Conv("GoogLeNet 4e 3x3 reduce", 528, 160, 14, 1),
    Conv("GoogLeNet 4e 3x3", 160, 320, 14),
    Conv("GoogLeNet 4e 5x5", 32, 128, 14, 5),
    Conv("GoogLeNet 5b 3x3", 192, 384, 7),
    Conv("ResNet 1", 3, 64, 224, 7, 2, first=True),
    Conv("ResNet 2a 3x3", 64, 64, 56),
    Conv("ResNet 2a out", 64, 256, 56, 1),
    Conv("ResNet 3a in", 256, 128, 56, 1),
    Conv("ResNet 3a 3x3", 128, 128, 56, 3, 2),
    Conv("ResNet 3a shortcut", 256, 512, 56, 1, 2),
    Conv("ResNet 3b 3x3", 128, 128, 28),
    Conv("ResNet 3b out", 128, 512, 28, 1),
    Conv("ResNet 4b in", 1024, 256, 14, 1),
    Conv("ResNet 4b 3x3", 256, 256, 14),
    Conv("ResNet 5b 3x3", 512, 512, 7),
    Conv("MobileNet 0", 3, 32, 224, 3, 2, first=True),
    depthwise("MobileNet 1", 32, 112, 3),
    Conv("MobileNet 1", 32, 64, 112, 1),
    depthwise("MobileNet 2", 64, 112, 3, 2),
    Conv("MobileNet 2", 64, 128, 56, 1),
    depthwise("MobileNet 3", 128, 56, 3),
    depthwise("MobileNet 7", 512, 14, 3),
    Conv("MobileNet 7", 512, 512, 14, 1),
)


def some(layers: Sequence[Conv], count: int) -> list[Conv]:
    """Return ``count`` of the layers, evenly spread, the last among them."""
    return [layers[(place + 1) * len(layers) // count - 1] for place in range(count)]
