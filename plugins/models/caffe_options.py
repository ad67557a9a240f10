"""Options of the networks that Caffe's users know; the names of their layers are Caffe's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine import Model, option

if TYPE_CHECKING:
    from torch import nn

LRN = ("caffe", "paper", "none")
LRN_HELP = "local response normalisation: caffe (k=1, alpha=1e-4/5), paper (k=2, alpha=1e-4), none"
FUSED_HELP = "normalise by a kernel that keeps little for the backward pass; false: by torch's operations"
HIDDEN = "units of each of the two hidden linear layers"
DROPOUT = "chance that a unit of the hidden linear layers is dropped in training"
AUXILIARY = "auxiliary heads in training; loss.auxiliary is their weight"


def normalisation(lrn: str, fused: bool) -> Callable[[], nn.Module] | None:
    """Return what makes a normalisation of the kind that is asked for; None for none."""
    from engine.normalization import LocalResponseNorm

    if lrn == "none":
        return None
    alpha, k = (5e-4, 2.0) if lrn == "paper" else (1e-4, 1.0)  # alpha is divided by the 5 channels
    return lambda: LocalResponseNorm(5, alpha, 0.75, k, fused)


@dataclass
class AlexNet(Model):
    """AlexNet (Krizhevsky et al. 2012) and Caffe's CaffeNet, for images of 39x39 and more."""

    groups: int = option(
        2, "2, as on the paper's two GPUs, or 1: every filter sees all channels", at_least=1, at_most=2
    )
    order: str = option("norm_pool", "norm_pool (AlexNet) or pool_norm (CaffeNet)", choices=("norm_pool", "pool_norm"))
    lrn: str = option("caffe", LRN_HELP, choices=LRN)
    fused_lrn: bool = option(True, FUSED_HELP)
    hidden: int = option(4096, HIDDEN, at_least=1)
    dropout: float = option(0.5, DROPOUT, at_least=0, below=1)

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for smaller images."""
        from .alexnet import AlexNet

        pool_first = self.order == "pool_norm"
        return AlexNet(
            inputs, outputs, self.groups, pool_first, normalisation(self.lrn, self.fused_lrn), self.hidden, self.dropout
        )


@dataclass
class ZFNet(Model):
    """ZFNet (Zeiler and Fergus 2013), AlexNet with smaller filters and strides first, for images of 47x47 and more."""

    lrn: str = option("caffe", LRN_HELP, choices=LRN)
    fused_lrn: bool = option(True, FUSED_HELP)
    hidden: int = option(4096, HIDDEN, at_least=1)
    dropout: float = option(0.5, DROPOUT, at_least=0, below=1)

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for smaller images."""
        from .alexnet import ZFNet

        return ZFNet(inputs, outputs, normalisation(self.lrn, self.fused_lrn), self.hidden, self.dropout)


@dataclass
class NIN(Model):
    """Network in network (Lin et al. 2013) for ImageNet: 1x1 convolutions, no linear layer."""

    dropout: float = option(0.5, "chance that a value before the fourth convolution is dropped", at_least=0, below=1)

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for smaller images."""
        from .nin import NIN

        return NIN(inputs, outputs, self.dropout)


@dataclass
class VGG(Model):
    """The VGG networks (Simonyan and Zisserman 2014), whose number of layers a subclass says."""

    depth: ClassVar[int]
    batch_norm: bool = option(False, "BatchNorm behind every convolution, which has no bias then")
    init: str = option("glorot", "initial weights: glorot, as the paper says, or he", choices=("glorot", "he"))
    hidden: int = option(4096, HIDDEN, at_least=1)
    dropout: float = option(0.5, DROPOUT, at_least=0, below=1)

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        from .vgg import VGG

        return VGG(inputs, outputs, self.depth, self.batch_norm, self.init, self.hidden, self.dropout)


@dataclass
class VGG11(VGG):
    """VGG with 8 convolutions of 3x3 and 3 linear layers (Simonyan and Zisserman 2014, configuration A)."""

    depth: ClassVar[int] = 11


@dataclass
class VGG13(VGG):
    """VGG with 10 convolutions of 3x3 and 3 linear layers (configuration B)."""

    depth: ClassVar[int] = 13


@dataclass
class VGG16(VGG):
    """VGG with 13 convolutions of 3x3 and 3 linear layers (configuration D)."""

    depth: ClassVar[int] = 16


@dataclass
class VGG19(VGG):
    """VGG with 16 convolutions of 3x3 and 3 linear layers (configuration E)."""

    depth: ClassVar[int] = 19


@dataclass
class GoogLeNet(Model):
    """GoogLeNet (Szegedy et al. 2014): nine inception modules, two auxiliary heads in training."""

    auxiliary: bool = option(True, AUXILIARY)
    lrn: str = option("caffe", LRN_HELP, choices=LRN)
    fused_lrn: bool = option(True, FUSED_HELP)
    dropout: float = option(
        0.4, "chance that a mean before the linear layer is dropped in training", at_least=0, below=1
    )
    auxiliary_dropout: float = option(0.7, "the same in the auxiliary heads", at_least=0, below=1)

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for smaller images."""
        from .googlenet import GoogLeNet

        norm = normalisation(self.lrn, self.fused_lrn)
        return GoogLeNet(inputs, outputs, self.auxiliary, norm, self.dropout, self.auxiliary_dropout)


@dataclass
class SqueezeNet(Model):
    """SqueezeNet (Iandola et al. 2016): AlexNet's accuracy with a fiftieth of its parameters."""

    version: str = option("1.0", "1.0, or 1.1, with less than half the computation", choices=("1.0", "1.1"))
    dropout: float = option(0.5, "chance that a value before the last convolution is dropped", at_least=0, below=1)

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for smaller images."""
        from .squeezenet import SqueezeNet

        return SqueezeNet(inputs, outputs, self.version, self.dropout)


@dataclass
class Cifar10Quick(Model):
    """Caffe's first example of a network for CIFAR-10: three 5x5 convolutions, two linear layers."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for smaller images."""
        from .cifar10 import Cifar10

        return Cifar10(inputs, outputs)


@dataclass
class Cifar10Full(Model):
    """Caffe's better network for CIFAR-10: normalisation within channels, one linear layer."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for smaller images."""
        from .cifar10 import Cifar10

        return Cifar10(inputs, outputs, full=True)
