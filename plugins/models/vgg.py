"""The networks of 3x3 convolutions of Simonyan and Zisserman 2014 ("Very deep convolutional networks")."""

from __future__ import annotations

from torch import Tensor, nn

from .initial import glorot, he, layers_of
from .sizes import add_classifier, features

FILTERS = (64, 128, 256, 512, 512)  # of the five stages
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each stage: configurations A, B, D and E of the paper's table 1."""


class VGG(nn.Sequential):
    """Five stages of 3x3 convolutions with ReLU, each ended by 2x2 maximum pooling, and three linear layers.

    [n, channels, height, width], of any size (224x224 in the paper) -> [n, outputs]. Pooling keeps an odd last row, as
    Caffe's. With ``batch_norm``, BatchNorm before every ReLU of the convolutions, which have no biases then. init:
    "glorot", as the paper recommends for training without a smaller network's weights to start from (footnote of
    section 3.1), or "he" (He et al. 2015). Layers have the names of the published Caffe weights: conv1_1 to fc8.
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        depth: int = 16,
        batch_norm: bool = False,
        init: str = "glorot",
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        channels = inputs[0]
        for stage, (convolutions, filters) in enumerate(zip(STAGES[depth], FILTERS, strict=True), 1):
            for number in range(1, convolutions + 1):
                name = f"{stage}_{number}"
                self.add_module(f"conv{name}", nn.Conv2d(channels, filters, 3, padding=1, bias=not batch_norm))
                if batch_norm:
                    self.add_module(f"bn{name}", nn.BatchNorm2d(filters))
                self.add_module(f"relu{name}", nn.ReLU())
                channels = filters
            self.add_module(f"pool{stage}", nn.MaxPool2d(2, 2, ceil_mode=True))
        left = features([self], inputs, channels)
        add_classifier(self, left, hidden, dropout, outputs)
        for layer in layers_of(self):
            glorot(layer) if init == "glorot" else he(layer)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        return super().forward(images)
