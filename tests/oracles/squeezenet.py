"""Where SqueezeNet v1.0's weights of its authors' first release belong in ``model=squeezenet``."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

# The first release's names of layers, before its authors gave them those that the paper has.
RENAMED = {
    r"/conv1x1_1$": "/squeeze1x1",
    r"/conv1x1_2$": "/expand1x1",
    r"/conv3x3_2$": "/expand3x3",
    "conv_final": "conv10",
}


def state_of(weights: dict[str, list[np.ndarray]]) -> dict[str, Tensor]:
    """Return Caffe's blobs under the network's names, the first layer's for red, green, blue, not the reverse."""
    state = {}
    for layer, (weight, bias) in weights.items():
        name = layer
        for old, new in RENAMED.items():
            name = re.sub(old, new, name)
        state[f"{name.replace('/', '.')}.weight"] = torch.from_numpy(weight)
        state[f"{name.replace('/', '.')}.bias"] = torch.from_numpy(bias.reshape(-1))
    state["conv1.weight"] = state["conv1.weight"].flip(1).contiguous()
    return state
