"""What a model is to an evaluation where each process trains one of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine.interfaces import Strategy


@contextmanager
def held_in_common(model: nn.Module, strategy: Strategy) -> Iterator[None]:
    """Within ``with``, the model holds what all processes have in common; its own comes back, bit-equal, on leaving."""
    own = model.state_dict()
    common = strategy.common(own)
    if common is own:
        yield
        return
    kept = {name: value.clone() for name, value in own.items()}
    _copy(own, common)
    try:
        yield
    finally:
        _copy(own, kept)


@torch.no_grad()
def _copy(to: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    for name, value in to.items():
        value.copy_(source[name])
