"""GoogLeNet (Szegedy et al. 2014, "Going deeper with convolutions"), as Caffe ships it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .initial import layers_of, xavier
from .sizes import features, require_size

SMALLER = "3x3_s2"  # the name of what halves an image


def conv(channels: int, filters: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the image's size but for its stride."""
    return nn.Conv2d(channels, filters, kernel, stride, kernel // 2)


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and 3x3 pooling side by side; the large ones and the pooling with a 1x1 to narrow.

    [n, channels, height, width] -> [n, the branches' filters in all, height, width]. widths: a row of the paper's table
    1, the filters of 1x1, "#3x3 reduce", 3x3, "#5x5 reduce", 5x5 and "pool proj".
    """

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, projected = widths
        layers = {
            "1x1": conv(channels, one, 1),
            "3x3_reduce": conv(channels, reduce3, 1),
            "3x3": conv(reduce3, three, 3),
            "5x5_reduce": conv(channels, reduce5, 1),
            "5x5": conv(reduce5, five, 5),
            "pool_proj": conv(channels, projected, 1),
        }
        for name, layer in layers.items():
            self.add_module(name, layer)
            self.add_module(f"relu_{name}", nn.ReLU())
        self.pool = nn.MaxPool2d(3, 1, 1)

    def _branch(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = self.get_submodule(f"relu_{name}")(self.get_submodule(name)(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of all branches, in the order of the widths."""
        branches = (
            self._branch(x, "1x1"),
            self._branch(x, "3x3_reduce", "3x3"),
            self._branch(x, "5x5_reduce", "5x5"),
            self._branch(self.pool(x), "pool_proj"),
        )
        return torch.cat(branches, 1)


class GoogLeNet(nn.Module):
    """22 layers: three convolutions, nine inception modules, the mean of the maps and one linear layer.

    [n, channels, height, width] (31x31 at least, with auxiliary heads 47x47; 224x224 in the paper) -> [n, outputs];
    6,998,552 parameters for colour images of 1,000 classes, without the auxiliary heads. In training it returns [main,
    first, second]: the scores of the auxiliary heads behind modules 4a and 4d follow the main one's; in evaluation, or
    with auxiliary=False, the main scores alone. norm: makes each of the two normalisations; None for none. Pooling with
    stride 2 keeps an incomplete last window, as Caffe's. Names and initial weights ("xavier", biases 0.2 but 0 where
    the scores are) are those of Caffe's network, whose weights fit. Raises UsageError for smaller images.
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        auxiliary: bool = True,
        norm: Callable[[], nn.Module] | None = None,
        dropout: float = 0.4,
        auxiliary_dropout: float = 0.7,
    ) -> None:
        super().__init__()
        self.conv1 = _named({"7x7_s2": conv(inputs[0], 64, 7, 2), "relu_7x7": nn.ReLU()})
        self.pool1 = _named({SMALLER: _halving()} | ({"norm1": norm()} if norm else {}))
        second: dict[str, nn.Module] = {"3x3_reduce": conv(64, 64, 1), "relu_3x3_reduce": nn.ReLU()}
        second |= {"3x3": conv(64, 192, 3), "relu_3x3": nn.ReLU()}
        self.conv2 = _named(second | ({"norm2": norm()} if norm else {}))
        self.pool2 = _named({SMALLER: _halving()})
        self.inception_3a = Inception(192, (64, 96, 128, 16, 32, 32))
        self.inception_3b = Inception(256, (128, 128, 192, 32, 96, 64))
        self.pool3 = _named({SMALLER: _halving()})
        self.inception_4a = Inception(480, (192, 96, 208, 16, 48, 64))
        self.inception_4b = Inception(512, (160, 112, 224, 24, 64, 64))
        self.inception_4c = Inception(512, (128, 128, 256, 24, 64, 64))
        self.inception_4d = Inception(512, (112, 144, 288, 32, 64, 64))
        self.inception_4e = Inception(528, (256, 160, 320, 32, 128, 128))
        self.pool4 = _named({SMALLER: _halving()})
        self.inception_5a = Inception(832, (256, 160, 320, 32, 128, 128))
        self.inception_5b = Inception(832, (384, 192, 384, 48, 128, 128))
        self.pool5 = nn.AdaptiveAvgPool2d(1)
        self.loss3 = _named(
            {"flatten": nn.Flatten(), "drop": nn.Dropout(dropout), "classifier": nn.Linear(1024, outputs)}
        )
        halvings = [self.conv1, self.pool1, self.pool2, self.pool3]
        self.auxiliary = auxiliary
        if auxiliary:
            self.loss1 = _head(512, halvings, inputs, outputs, auxiliary_dropout)
            self.loss2 = _head(528, halvings, inputs, outputs, auxiliary_dropout)
        require_size("googlenet", [*halvings, self.pool4], inputs)
        for layer in layers_of(self):
            xavier(layer, 0.2)
        for name, module in self.named_modules():
            if name.endswith("classifier"):
                nn.init.zeros_(module.get_parameter("bias"))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Return the scores; in training with auxiliary heads [main, first, second]."""
        x = self.pool2(self.conv2(self.pool1(self.conv1(images))))
        x = self.pool3(self.inception_3b(self.inception_3a(x)))
        early = self.inception_4a(x)
        late = self.inception_4d(self.inception_4c(self.inception_4b(early)))
        x = self.inception_5b(self.inception_5a(self.pool4(self.inception_4e(late))))
        scores = self.loss3(self.pool5(x))
        if self.training and self.auxiliary:
            return [scores, self.loss1(early), self.loss2(late)]
        return scores


def _halving() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _named(layers: dict[str, nn.Module]) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, layer in layers.items():
        sequence.add_module(name, layer)
    return sequence


def _head(
    channels: int, before: Sequence[nn.Module], inputs: tuple[int, int, int], outputs: int, dropout: float
) -> nn.Sequential:
    """Return an auxiliary head for maps of so many channels, which the layers ``before`` have made small."""
    pool = nn.AvgPool2d(5, 3, ceil_mode=True)
    require_size("googlenet", [*before, pool], inputs, ", or, from 31x31 on, set model.auxiliary=false")
    left = features([*before, pool], inputs, 128)
    return _named({
        "ave_pool": pool, "conv": conv(channels, 128, 1), "relu_conv": nn.ReLU(), "flatten": nn.Flatten(),
        "fc": nn.Linear(left, 1024), "relu_fc": nn.ReLU(), "drop_fc": nn.Dropout(dropout),
        "classifier": nn.Linear(1024, outputs),
    })  # fmt: skip
