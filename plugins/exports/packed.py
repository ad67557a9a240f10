"""format=binary: a network of one bit, packed."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from engine import UsageError, __version__
from engine.binary import container, load
from engine.binary.packing import pack
from engine.binary.pixels import Pixels
from engine.trained import Trained

from .place import beside, naming


def write(network: Trained, path: Path) -> str:
    """Write the file and return what to print; the file is read back and compared in every bit first."""
    if network.images.dtype != torch.float32:
        raise UsageError(f"format=binary packs networks of float32, not {network.images.dtype}: choose another format")
    model, pixels = network.model, None if network.pixels is None else Pixels(network.pixels)
    told = []  # what is to be said of the file, once it is there
    if pixels is None:
        told.append("the file takes floats alone: preparing an image is more than looking up its pixels' values")
    packed = pack(model, network.images, pixels, told.append)
    packed.header["facts"] = {"engine": __version__, "classes": list(network.classes)}
    with beside(path, ".bits") as before:
        with naming(path):
            size = container.write(before, packed.header, packed.arrays)
        with torch.no_grad():
            same = torch.equal(load(before)(network.images), model(network.images))
        if not same:
            raise RuntimeError(f"{before} does not compute what was packed")
    for text in told:
        print(f"engine: {text}", file=sys.stderr)
    floats = 4 * sum(p.numel() for p in model.parameters())
    return (
        f"{path}: {size:,} bytes, {floats / size:.1f} times smaller than the parameters as float32; outputs of "
        f"{len(network.images)} test images have the same bits as the model's"
    )
