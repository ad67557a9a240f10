"""A plugin with Caffe's cifar10_quick behind the subtraction of a mean image, which Caffe does to the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine import Model, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class LessMean(Model):
    """model=cifar10_quick with the mean image in it; takes red, green, blue from 0 to 1."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        import torch
        from torch import nn

        from engine.plugins.models import Cifar10Quick

        class Subtraction(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("mean", torch.zeros(inputs))

            def forward(self, images: Tensor) -> Tensor:
                return 255 * images - self.mean

        return nn.Sequential(Subtraction(), Cifar10Quick().build(inputs, outputs))


def state_of(weights: dict[str, list[np.ndarray]], mean: np.ndarray) -> dict[str, Tensor]:
    """Return Caffe's blobs, all of four dimensions in a file of that age, under this network's names.

    mean: of the training images, [3, 32, 32], 0 to 255; Caffe keeps it in a file of its own.
    """
    import torch

    state = {"0.mean": torch.from_numpy(mean.astype(np.float32))}
    for layer, (weight, bias) in weights.items():
        inner = layer.startswith("ip")
        state[f"1.{layer}.weight"] = torch.from_numpy(weight.reshape(weight.shape[2:] if inner else weight.shape))
        state[f"1.{layer}.bias"] = torch.from_numpy(bias.reshape(-1))
    return state


@hookimpl
def engine_options(store):
    """Register the network."""
    store.add("model", "quick_less_mean", LessMean)
