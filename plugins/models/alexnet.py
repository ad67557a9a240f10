"""AlexNet (Krizhevsky, Sutskever, Hinton 2012), as Caffe ships it, and ZFNet (Zeiler and Fergus 2013), made of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .initial import gaussian, layers_of
from .sizes import add_classifier, features, require_size

BIASED = ("conv2", "conv4", "conv5", "fc6", "fc7")  # those whose biases start at 1 in the paper's section 5


class AlexNet(nn.Sequential):
    """Five convolutions, three maximum poolings and three linear layers, with ReLU, normalisation and dropout.

    [n, channels, height, width] (39x39 at least; 227x227 in Caffe) -> [n, outputs]; 60,965,224 parameters for 227x227
    colour images of 1,000 classes with two groups, 62,378,344 with one. groups: the second, fourth and fifth
    convolution see half of the channels each, as on the paper's two GPUs, or all. norm: makes each of the two
    normalisations; None for none. ``pool_first`` puts it behind the pooling (Caffe's CaffeNet), not before (AlexNet).
    Pooling is 3x3 with stride 2 and keeps an incomplete last window, as Caffe's. Weights start with standard deviation
    0.01, biases at 1 in every layer that the paper says, else at 0. Layers have Caffe's names, so that its weights fit.
    Raises UsageError for smaller images.
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        groups: int = 2,
        pool_first: bool = False,
        norm: Callable[[], nn.Module] | None = None,
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs[0], 96, 11, 4)
        self.relu1 = nn.ReLU()
        _pool_and_norm(self, 1, pool_first, norm)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=groups)
        self.relu2 = nn.ReLU()
        _pool_and_norm(self, 2, pool_first, norm)
        _to_the_end(self, "alexnet", inputs, outputs, groups, hidden, dropout)
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                gaussian(layer, 0.01, 1.0 if name in BIASED else 0.0)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        return super().forward(images)


class ZFNet(nn.Sequential):
    """AlexNet with 7x7 filters at stride 2 in the first layer and stride 2 in the second; ZFNet's figure 3.

    [n, channels, height, width] (47x47 at least; 224x224 in the paper) -> [n, outputs]. Every pooling of the first two
    comes before its normalisation, and there are no groups. Weights start with standard deviation 0.01 and biases at 0
    (section 3); the paper's clipping of filters to an RMS of 0.1 in training is not part of the network. Raises
    UsageError for smaller images.
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        norm: Callable[[], nn.Module] | None = None,
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs[0], 96, 7, 2, padding=1)
        self.relu1 = nn.ReLU()
        _pool_and_norm(self, 1, True, norm)
        self.conv2 = nn.Conv2d(96, 256, 5, 2)
        self.relu2 = nn.ReLU()
        _pool_and_norm(self, 2, True, norm)
        _to_the_end(self, "zfnet", inputs, outputs, 1, hidden, dropout)
        for layer in layers_of(self):
            gaussian(layer, 0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        return super().forward(images)


def _pool_and_norm(network: nn.Sequential, number: int, pool_first: bool, norm: Callable[[], nn.Module] | None) -> None:
    pair: list[tuple[str, nn.Module]] = [(f"pool{number}", nn.MaxPool2d(3, 2, ceil_mode=True))]
    if norm is not None:
        pair.insert(len(pair) if pool_first else 0, (f"norm{number}", norm()))
    for name, module in pair:
        network.add_module(name, module)


def _to_the_end(
    network: nn.Sequential,
    model: str,
    inputs: tuple[int, int, int],
    outputs: int,
    groups: int,
    hidden: int,
    dropout: float,
) -> None:
    """Add what both networks have from the third convolution on."""
    network.conv3 = nn.Conv2d(256, 384, 3, padding=1)
    network.relu3 = nn.ReLU()
    network.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=groups)
    network.relu4 = nn.ReLU()
    network.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=groups)
    network.relu5 = nn.ReLU()
    network.pool5 = nn.MaxPool2d(3, 2, ceil_mode=True)
    require_size(model, [network], inputs)
    left = features([network], inputs, 256)
    add_classifier(network, left, hidden, dropout, outputs)
