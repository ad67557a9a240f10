"""A network from a list of words, one for each layer or block: ``conv3x3:64``, ``+stack3x3:128x2/2``, ``pool``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from engine.normalization import LocalResponseNorm

from .blocks import Asymmetric, Block, Bottleneck, DepthwiseSeparable, Residual, Stack
from .initial import he, layers_of
from .sizes import size_after
from .words import CONVOLUTIONS, FLAT, Word, read_word


class Custom(nn.Sequential):
    """The layers and blocks of ``layers``, named layer1, layer2 and so on, and the linear layer ``head``.

    [n, channels, height, width] -> [n, outputs]. The words' grammar is that of docs/networks.md. Maps that are left at
    the end are averaged; ``linear`` takes all their numbers. Convolutions and linear layers start as He et al. 2015
    ("Delving deep into rectifiers") say, with their fan-in; biases at 0. batch_norm: between every convolution and its
    ReLU. bias: of convolutions without BatchNorm. Raises UsageError that names the word that does not fit.
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        layers: Sequence[str],
        batch_norm: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.shape, self.flat = inputs, 0  # of what comes out so far: maps, or so many numbers if not 0
        self.settings = {"batch_norm": batch_norm, "bias": bias}
        for place, text in enumerate(layers, 1):
            word = read_word(text, place)
            if self.flat and word.kind not in FLAT:
                raise word.wrong("no maps are left behind linear or gap: only linear:256 or dropout:0.5 may follow")
            made = [self._layer(word, first=number == 0) for number in range(word.times)]
            self.add_module(f"layer{place}", made[0] if len(made) == 1 else nn.Sequential(*made))
        if not self.flat:
            self.gap, self.flatten, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.shape[0]
        self.head = nn.Linear(self.flat, outputs)
        for layer in layers_of(self):
            he(layer)
        nn.init.normal_(self.head.weight, 0.0, self.flat**-0.5)

    def _layer(self, word: Word, first: bool) -> nn.Module:
        """Return what a word means for the maps so far; of repeated ones only the first has the stride."""
        if word.kind in CONVOLUTIONS:
            return self._convolution(word, word.stride if first else 1)
        if word.kind in ("pool", "avgpool"):
            return self._pooling(word)
        if word.kind == "lrn":
            return LocalResponseNorm()
        if word.kind == "dropout":
            return nn.Dropout(word.value)
        channels, height, width = self.shape
        if word.kind == "gap":
            self.flat = channels
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        before, self.flat = self.flat or channels * height * width, word.filters
        return nn.Sequential(nn.Flatten(), nn.Linear(before, word.filters), nn.ReLU())

    def _convolution(self, word: Word, stride: int) -> nn.Module:
        channels, height, width = self.shape
        filters = word.filters
        self.shape = (filters, -(-height // stride), -(-width // stride))
        block = self._block(word, channels, stride)
        return Residual(block, channels, filters, stride) if word.shortcut else block

    def _block(self, word: Word, channels: int, stride: int) -> Block:
        side = word.sides[0]
        more: dict[str, Any] = {**self.settings, "stride": stride, "relu": not word.shortcut}
        if word.kind == "bottleneck":
            return Bottleneck(channels, word.filters, size=side, asymmetric=word.split, **more)
        if word.kind == "depthwise":
            return DepthwiseSeparable(channels, word.filters, size=side, **more)
        if word.split:
            return Asymmetric(channels, word.filters, side, **more)
        return Stack(channels, word.filters, word.count, word.sides, **more)

    def _pooling(self, word: Word) -> nn.Module:
        channels, height, width = self.shape
        if height == 1 and width == 1:
            raise word.wrong("only 1x1 pixels are left here: take a layer with a stride out, or larger images")
        sides = (min(word.sides[0], height), min(word.sides[1], width))
        kind = nn.MaxPool2d if word.kind == "pool" else nn.AvgPool2d
        pool = kind(sides, word.stride, ceil_mode=True)
        self.shape = (channels, size_after([pool], height, 0), size_after([pool], width, 1))
        return pool

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        return super().forward(images)
