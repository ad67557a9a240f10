"""A plugin with Caffe's own first example of a network, cifar10_quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine import Model, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

LAYERS = {"conv1": "1", "conv2": "4", "conv3": "7", "ip1": "11", "ip2": "12"}


@dataclass
class Cifar10Quick(Model):
    """Caffe's cifar10_quick; takes red, green, blue from 0 to 1, and has the mean image in it."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        import torch
        from torch import nn

        class LessMean(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("mean", torch.zeros(inputs))

            def forward(self, images: Tensor) -> Tensor:
                return 255 * images - self.mean

        return nn.Sequential(
            LessMean(), nn.Conv2d(inputs[0], 32, 5, padding=2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(),
            nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, outputs),
        )  # fmt: skip


def state_of(weights: dict[str, list[np.ndarray]], mean: np.ndarray) -> dict[str, Tensor]:
    """Return Caffe's blobs, all of four dimensions in a file of that age, under this network's names.

    mean: of the training images, [3, 32, 32], 0 to 255; Caffe keeps it in a file of its own.
    """
    import torch

    state = {"0.mean": torch.from_numpy(mean.astype(np.float32))}
    for layer, (weight, bias) in weights.items():
        inner = layer.startswith("ip")
        state[f"{LAYERS[layer]}.weight"] = torch.from_numpy(weight.reshape(weight.shape[2:] if inner else weight.shape))
        state[f"{LAYERS[layer]}.bias"] = torch.from_numpy(bias.reshape(-1))
    return state


@hookimpl
def engine_options(store):
    """Register the network."""
    store.add("model", "cifar10_quick", Cifar10Quick)
