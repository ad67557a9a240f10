"""Options of the networks after VGG whose parameters have torchvision's names, and of networks from a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine import Model, option

from .caffe_options import AUXILIARY

if TYPE_CHECKING:
    from torch import nn


@dataclass
class InceptionV3(Model):
    """Inception-v3 (Szegedy et al. 2016): factorised convolutions, for images of 299x299 (75x75 without the head)."""

    auxiliary: bool = option(True, AUXILIARY)
    dropout: float = option(
        0.5, "chance that a mean before the linear layer is dropped in training", at_least=0, below=1
    )

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for smaller images."""
        from .inception import InceptionV3

        return InceptionV3(inputs, outputs, self.auxiliary, self.dropout)


@dataclass
class ImageNetResNet(Model):
    """The ResNets of He et al. 2015 for ImageNet, whose number of layers a subclass says."""

    depth: ClassVar[int]
    zero_init: bool = option(False, "every block starts as its shortcut alone (Goyal et al. 2017)")
    survival: float = option(
        1.0, "stochastic depth: chance that training keeps the last block's residual, as of resnet20",
        above=0, at_most=1,
    )  # fmt: skip

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        from .residual import ResNet

        return ResNet(inputs, outputs, self.depth, zero_init=self.zero_init, survival=self.survival)


@dataclass
class BottleneckResNet(ImageNetResNet):
    """Those of them whose blocks are bottlenecks."""

    stride_in: str = option(
        "3x3", "the convolution with the stride: 1x1 as in the paper (v1), 3x3 as torchvision's (v1.5)",
        choices=("1x1", "3x3"),
    )  # fmt: skip

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        from .residual import ResNet

        return ResNet(inputs, outputs, self.depth, self.stride_in, self.zero_init, self.survival)


@dataclass
class ResNet18(ImageNetResNet):
    """ResNet of 18 layers for ImageNet (He et al. 2015), with basic blocks."""

    depth: ClassVar[int] = 18


@dataclass
class ResNet34(ImageNetResNet):
    """ResNet of 34 layers for ImageNet, with basic blocks."""

    depth: ClassVar[int] = 34


@dataclass
class ResNet50(BottleneckResNet):
    """ResNet of 50 layers for ImageNet, with bottlenecks; v1.5 by default."""

    depth: ClassVar[int] = 50


@dataclass
class ResNet101(BottleneckResNet):
    """ResNet of 101 layers for ImageNet, with bottlenecks; v1.5 by default."""

    depth: ClassVar[int] = 101


@dataclass
class ResNet152(BottleneckResNet):
    """ResNet of 152 layers for ImageNet, with bottlenecks; v1.5 by default."""

    depth: ClassVar[int] = 152


@dataclass
class MobileNet(Model):
    """MobileNet v1 (Howard et al. 2017): depthwise separable convolutions."""

    width: float = option(1.0, "by what the filters of every layer are multiplied, as 0.5", above=0)

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        from .mobilenet import MobileNet

        return MobileNet(inputs, outputs, self.width)


@dataclass
class Custom(Model):
    """A network from a list: model.layers=[conv3x3:64,pool,stack3x3:128x2/2,bottleneck:256,linear:256]."""

    layers: list[str] = option(
        ["conv3x3:32", "pool", "conv3x3:64", "pool", "conv3x3:128"],
        "layers in their order: conv, stack, bottleneck, depthwise, pool, avgpool, gap, lrn, dropout, linear",
    )
    batch_norm: bool = option(True, "BatchNorm between every convolution and its ReLU")
    bias: bool = option(True, "convolutions have biases, where no BatchNorm follows")

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError naming the word that cannot be read or does not fit."""
        from .custom import Custom

        return Custom(inputs, outputs, self.layers, self.batch_norm, self.bias)
