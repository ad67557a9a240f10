"""Built-in networks: small ones, Caffe's, those of the ImageNet papers, and custom, made from a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Model, UsageError, hookimpl, option

from .caffe_options import (
    NIN,
    VGG11,
    VGG13,
    VGG16,
    VGG19,
    AlexNet,
    Cifar10Full,
    Cifar10Quick,
    GoogLeNet,
    SqueezeNet,
    ZFNet,
)
from .later_options import Custom, InceptionV3, MobileNet, ResNet18, ResNet34, ResNet50, ResNet101, ResNet152

if TYPE_CHECKING:
    from torch import nn

    from engine.registry import Store


@dataclass
class SmallCNN(Model):
    """A small network of 3x3 convolutions with batch normalisation, for images of 8x8 and more."""

    width: int = option(32, "filters of the first layer; the second has 2x, the third 4x as many", at_least=1)
    dropout: float = option(0.0, "chance that a pooled feature is dropped in training", at_least=0, at_most=1)
    drop_connect: float = option(
        0.0, "chance that a weight of the last layer is dropped in training", at_least=0, below=1
    )

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for images smaller than 8x8."""
        from .cnn import SmallCNN

        return SmallCNN(inputs, outputs, self.width, self.dropout, self.drop_connect)


@dataclass
class LeNet(Model):
    """LeNet as Caffe ships it: two 5x5 convolutions (20, 50 filters) and a hidden layer of 500, with ReLU."""

    filters: list[int] = option([20, 50], "filters of the first and the second convolution")
    hidden: int = option(500, "units of the hidden layer", at_least=1)
    relu: str = option(
        "hidden", "where ReLU is: behind the hidden layer alone, or all, the convolutions too (Gupta et al. 2015)",
        choices=("hidden", "all"),
    )  # fmt: skip

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for images smaller than 13x13 or other than two numbers of filters."""
        from .lenet import LeNet

        return LeNet(inputs, outputs, self.filters, self.hidden, everywhere=self.relu == "all")


@dataclass
class MLP(Model):
    """Linear layers and ReLU, for images of any size: what papers on low precision train on MNIST."""

    hidden: list[int] = option([256, 256], "units of the hidden layers, as [2048,2048,2048]; [] for none")
    batch_norm: bool = option(False, "BatchNorm behind every linear layer, the last one too; they have no biases then")
    dropout: float = option(0.0, "chance that a hidden unit is dropped in training", at_least=0, below=1)
    input_dropout: float = option(0.0, "chance that a pixel is dropped in training", at_least=0, below=1)
    init: str = option("he", "initial weights: he (He et al. 2015), normal (init_std)", choices=("he", "normal"))
    init_std: float = option(0.01, "standard deviation of init=normal (Gupta et al. 2015: 0.01)", above=0)

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for a layer without units."""
        from .mlp import MLP

        if any(units < 1 for units in self.hidden):
            raise UsageError(f"model.hidden={self.hidden}: every hidden layer needs at least one unit")
        return MLP(
            inputs, outputs, self.hidden, self.batch_norm, self.dropout, self.input_dropout, self.init, self.init_std
        )


@dataclass
class ResNet20(Model):
    """The CIFAR ResNet of He et al. 2015 with parameter-free (option A) shortcuts, 20 layers by default."""

    depth: int = option(20, "layers, 6n + 2: the paper has 20, 32, 44, 56 and 110", at_least=8)
    survival: float = option(
        1.0,
        "stochastic depth (Huang et al. 2016): chance that training keeps the last block's residual; from 1 before "
        "the first block it falls in equal steps",
        above=0,
        at_most=1,
    )

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for a depth that is not 6n + 2."""
        from .resnet import ResNet

        return ResNet(inputs, outputs, self.depth, self.survival)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in networks."""
    store.add("model", "cnn", SmallCNN)
    store.add("model", "lenet", LeNet)
    store.add("model", "mlp", MLP)
    store.add("model", "resnet20", ResNet20)
    for network in (ResNet18, ResNet34, ResNet50, ResNet101, ResNet152, VGG11, VGG13, VGG16, VGG19):
        store.add("model", network.__name__.lower(), network)
    store.add("model", "alexnet", AlexNet)
    store.add("model", "cifar10_full", Cifar10Full)
    store.add("model", "cifar10_quick", Cifar10Quick)
    store.add("model", "custom", Custom)
    store.add("model", "googlenet", GoogLeNet)
    store.add("model", "inception_v3", InceptionV3)
    store.add("model", "mobilenet", MobileNet)
    store.add("model", "nin", NIN)
    store.add("model", "squeezenet", SqueezeNet)
    store.add("model", "zfnet", ZFNet)
