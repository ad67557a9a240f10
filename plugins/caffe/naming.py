"""How Caffe's layers are called in a module: the slash that they use for groups is the module's dot."""

from __future__ import annotations

from torch import nn

TAKEN = frozenset(dir(nn.Module())) | {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def path_of(layer: str) -> str:
    """Return the path of a layer's module: conv2/3x3 is conv2.3x3; a part that torch uses itself gets a _ behind it."""
    parts = (part if part not in TAKEN else f"{part}_" for part in layer.split("/"))
    return ".".join(part or "_" for part in parts)
