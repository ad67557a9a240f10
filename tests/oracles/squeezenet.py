"""A plugin as somebody with old Caffe weights might write it: SqueezeNet v1.0 (Iandola et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine import Model, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

FIRES = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}
"""The squeezed and the expanded channels of each fire module (the paper's table 1)."""
POOLED = (4, 8)  # the modules after which the image becomes smaller


@dataclass
class SqueezeNet(Model):
    """SqueezeNet v1.0 with Caffe's geometry; takes red, green, blue less their means, as 0 to 255."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        from torch import nn

        class Fire(nn.Module):
            def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
                super().__init__()
                self.conv1x1_1 = nn.Conv2d(channels, squeezed, 1)
                self.conv1x1_2 = nn.Conv2d(squeezed, expanded, 1)
                self.conv3x3_2 = nn.Conv2d(squeezed, expanded, 3, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                x = self.conv1x1_1(x).relu()
                return nn.functional.relu(torch_cat(self.conv1x1_2(x), self.conv3x3_2(x)))

        network = nn.Sequential()
        network.add_module("conv1", nn.Conv2d(inputs[0], 96, 7, 2))
        network.append(nn.ReLU()).append(nn.MaxPool2d(3, 2, ceil_mode=True))
        channels = 96
        for number, (squeezed, expanded) in FIRES.items():
            network.add_module(f"fire{number}", Fire(channels, squeezed, expanded))
            channels = 2 * expanded
            if number in POOLED:
                network.add_module(f"pool{number}", nn.MaxPool2d(3, 2, ceil_mode=True))
        network.add_module("drop9", nn.Dropout())
        network.add_module("conv_final", nn.Conv2d(channels, outputs, 1, padding=1))  # padded: as the prototxt has it
        for layer in (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()):
            network.append(layer)
        return network


def torch_cat(*parts: Tensor) -> Tensor:
    """Return images with the channels of all parts."""
    import torch

    return torch.cat(parts, 1)


def state_of(weights: dict[str, list[np.ndarray]]) -> dict[str, Tensor]:
    """Return Caffe's blobs under this network's names, the first layer's for red, green, blue, not the reverse."""
    import torch

    state = {}
    for layer, (weight, bias) in weights.items():
        name = layer.replace("/", ".")
        state[f"{name}.weight"] = torch.from_numpy(weight)
        state[f"{name}.bias"] = torch.from_numpy(bias.reshape(-1))
    state["conv1.weight"] = state["conv1.weight"].flip(1).contiguous()
    return state


@hookimpl
def engine_options(store):
    """Register the network."""
    store.add("model", "squeezenet", SqueezeNet)
