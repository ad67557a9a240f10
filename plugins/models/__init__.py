"""Built-in networks: cnn, lenet, resnet20."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Model, hookimpl, option

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

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError for images smaller than 13x13."""
        from .lenet import LeNet

        return LeNet(inputs, outputs)


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
    store.add("model", "resnet20", ResNet20)
