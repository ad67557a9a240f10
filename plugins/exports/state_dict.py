"""format=state_dict: the tensors of a network under their own names in one file, in however many pieces they were."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine import __version__
from engine.trained import Trained

from .place import beside, naming


def write(network: Trained, path: Path) -> str:
    """Write what ``load_state_dict`` takes once safetensors has read it, and return what to print."""
    contiguous = torch.contiguous_format
    state = {name: t.detach().clone(memory_format=contiguous) for name, t in network.model.state_dict().items()}
    facts = {"engine": __version__, "classes": json.dumps(list(network.classes))}
    with beside(path, ".safetensors") as before:
        with naming(path):
            try:
                save_file(state, before, facts)
            except SafetensorError as error:  # how it tells that the disk is full
                raise OSError(str(error)) from error
        kept = load_file(before)
        if kept.keys() != state.keys() or not all(torch.equal(kept[name], value) for name, value in state.items()):
            raise RuntimeError(f"{before} does not hold what was written")
        size = before.stat().st_size
    return f"{path}: {size:,} bytes; {len(state)} tensors under the network's own names, read back with the same bits"
