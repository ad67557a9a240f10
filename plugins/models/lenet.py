"""LeNet in the form that Caffe made common (its examples/mnist/lenet.prototxt)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from engine import UsageError

SMALLEST = 13  # pixels; below it nothing is left for the second convolution


class LeNet(nn.Module):
    """Convolution 5x5 (20), pooling, convolution 5x5 (50), pooling, hidden layer of 500, ReLU, linear layer.

    [n, channels, height, width] (13x13 at least) -> [n, outputs]; 431,080 parameters for 28x28 gray images of
    10 classes. This is LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition")
    as Caffe modernised it: maximum pooling 2x2 that keeps an odd last row, one ReLU after the hidden layer and
    none after the convolutions, softmax instead of radial basis functions, full connections between the maps.
    Weights start uniform in +-sqrt(3 / fan-in), Caffe's "xavier"; biases start at 0. Sizes other than Caffe's are
    ``filters`` and ``hidden``; ``everywhere`` puts a ReLU behind the convolutions too.
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        filters: Sequence[int] = (20, 50),
        hidden: int = 500,
        everywhere: bool = False,
    ) -> None:
        super().__init__()
        if len(filters) != 2 or min(filters) < 1:
            raise UsageError(f"model.filters={list(filters)}: write two numbers of at least 1, as [20,50]")
        first, second = filters
        channels, height, width = inputs
        if min(height, width) < SMALLEST:
            raise UsageError(
                f"model=lenet needs images of at least {SMALLEST}x{SMALLEST}, not {height}x{width}: choose model=cnn"
            )
        self.conv1 = nn.Conv2d(channels, first, 5)
        self.relu1 = nn.ReLU() if everywhere else nn.Identity()
        self.conv2 = nn.Conv2d(first, second, 5)
        self.relu2 = nn.ReLU() if everywhere else nn.Identity()
        self.fc1 = nn.Linear(second * _pooled(_pooled(height)) * _pooled(_pooled(width)), hidden)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, outputs)
        for parameter in self.parameters():
            bound = (3 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.0
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        x = nn.functional.max_pool2d(self.relu1(self.conv1(images)), 2, ceil_mode=True)
        x = nn.functional.max_pool2d(self.relu2(self.conv2(x)), 2, ceil_mode=True)
        return self.fc2(self.relu3(self.fc1(x.flatten(1))))


def _pooled(size: int) -> int:
    """Return the size after a 5x5 convolution and pooling that keeps an odd last row."""
    return (size - 4 + 1) // 2
