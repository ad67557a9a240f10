"""Ways to stack convolutions, by what they cost: with C channels in and out, a 7x7 convolution has 49 C^2 weights.

| block | weights | sees |
|---|---|---|
| ``Stack`` of three 3x3 | 27 C^2 | 7x7 |
| one 3x3 | 9 C^2 | 3x3 |
| ``Asymmetric``, 1x3 and 3x1 | 6 C^2 | 3x3 |
| ``Bottleneck``, 1x1 to C/2, 3x3, 1x1 back | 3.25 C^2 | 3x3 |
| ``Bottleneck`` with 1x3 and 3x1 in the middle | 2.5 C^2 | 3x3 |
| ``DepthwiseSeparable``, 3x3 of each channel, then 1x1 | C^2 + 9 C | 3x3 |

Every block is [n, channels, height, width] -> [n, filters, height / stride, width / stride], rounded up: kernels are
odd, and padded by half. A ReLU follows every convolution, with ``batch_norm`` a BatchNorm between them; ``relu=False``
leaves the last ReLU out, for what is summed first. Convolutions have biases where no BatchNorm follows, unless
``bias=False``.
"""

from __future__ import annotations

from torch import Tensor, nn

Kernel = tuple[int, int]


class Block(nn.Sequential):
    """Convolutions one after the other, named conv1, bn1, relu1, conv2 and so on."""

    def __init__(self, batch_norm: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.batch_norm, self.bias, self._count = batch_norm, bias and not batch_norm, 0

    def convolve(
        self, channels: int, filters: int, kernel: Kernel, stride: Kernel = (1, 1), groups: int = 1, relu: bool = True
    ) -> None:
        """Add a convolution, with BatchNorm if the block has it, and a ReLU."""
        self._count += 1
        padding = (kernel[0] // 2, kernel[1] // 2)
        convolution = nn.Conv2d(channels, filters, kernel, stride, padding, groups=groups, bias=self.bias)
        self.add_module(f"conv{self._count}", convolution)
        if self.batch_norm:
            self.add_module(f"bn{self._count}", nn.BatchNorm2d(filters))
        if relu:
            self.add_module(f"relu{self._count}", nn.ReLU())

    def factored(self, channels: int, filters: int, size: int, stride: int = 1, relu: bool = True) -> None:
        """Add a convolution of 1 x size, then one of size x 1; each has the stride along its own side."""
        self.convolve(channels, filters, (1, size), (1, stride))
        self.convolve(filters, filters, (size, 1), (stride, 1), relu=relu)


class Stack(Block):
    """``count`` convolutions of one size, the first with the stride: 3x3 thrice sees 7x7, with 27 C^2 weights for 49.

    Simonyan and Zisserman 2014 ("Very deep convolutional networks", section 2.3) argue for it.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        count: int = 3,
        kernel: Kernel = (3, 3),
        stride: int = 1,
        batch_norm: bool = False,
        bias: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__(batch_norm, bias)
        for number in range(count):
            first = number == 0
            self.convolve(
                channels if first else filters, filters, kernel, (stride, stride) if first else (1, 1),
                relu=relu or number < count - 1,
            )  # fmt: skip


class Asymmetric(Block):
    """1 x size, then size x 1: sees size x size with 2 size C^2 weights, 6 C^2 for 3x3 instead of 9.

    Szegedy et al. 2016 ("Rethinking the Inception architecture", section 3.2).
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        size: int = 3,
        stride: int = 1,
        batch_norm: bool = False,
        bias: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__(batch_norm, bias)
        self.factored(channels, filters, size, stride, relu)


class Bottleneck(Block):
    """1x1 to ``narrow`` channels (half of ``filters`` by default), size x size among these, 1x1 to ``filters``.

    With C filters 3.25 C^2 weights, and 2.5 C^2 with ``asymmetric``: 1 x size and size x 1 in the middle. The stride
    is in the middle. Without a shortcut; ``Residual`` adds one. Lin et al. 2013 ("Network in network") brought the 1x1
    convolution, He et al. 2015 ("Deep residual learning", figure 5) the bottleneck.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        narrow: int = 0,
        size: int = 3,
        stride: int = 1,
        asymmetric: bool = False,
        batch_norm: bool = False,
        bias: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__(batch_norm, bias)
        narrow = narrow or filters // 2
        self.convolve(channels, narrow, (1, 1))
        if asymmetric:
            self.factored(narrow, narrow, size, stride)
        else:
            self.convolve(narrow, narrow, (size, size), (stride, stride))
        self.convolve(narrow, filters, (1, 1), relu=relu)


class DepthwiseSeparable(Block):
    """A size x size convolution of every channel by itself, then a 1x1 convolution of all: C^2 + 9 C weights for 3x3.

    Howard et al. 2017 ("MobileNets", section 3.1). The first has the stride.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        stride: int = 1,
        size: int = 3,
        batch_norm: bool = False,
        bias: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__(batch_norm, bias)
        self.convolve(channels, channels, (size, size), (stride, stride), groups=channels)
        self.convolve(channels, filters, (1, 1), relu=relu)


class Residual(nn.Module):
    """The ReLU of a block's maps plus its input, which passes a 1x1 convolution where the shape changes.

    body: a block from ``channels`` to ``filters`` with that stride, made without its last ReLU. He et al. 2015 ("Deep
    residual learning for image recognition"), option B.
    """

    def __init__(self, body: Block, channels: int, filters: int, stride: int = 1) -> None:
        super().__init__()
        self.body = body
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != filters:
            self.shortcut = Block(body.batch_norm, body.bias)
            self.shortcut.convolve(channels, filters, (1, 1), (stride, stride), relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum's ReLU."""
        return self.relu(self.body(x) + self.shortcut(x))
