"""How Caffe's layers are called in a module: the slash that they use for groups is the module's dot."""

from __future__ import annotations

import re

from torch import nn

DEEPEST = 16  # parts of a name; Caffe's own have three
OWN = {"multipliers", "blobs", "outputs", "mean_image", "_image", "_heads", "_steps"}  # of Network
TAKEN = frozenset(dir(nn.Module())) | {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"} | OWN
SEPARATOR = re.compile(r"[/.]")


def path_of(layer: str) -> str:
    """Return the path of a layer's module: conv2/3x3 is conv2.3x3; a part that torch uses itself gets a _ behind it.

    An empty part, as behind a last dot, is _.
    """
    parts = (part if part not in TAKEN else f"{part}_" for part in SEPARATOR.split(layer))
    return ".".join(part or "_" for part in parts)
