"""The plain way through a step's micro-batches: one after the other, their gradients added up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.interfaces import Batch


def one_by_one(loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
    """Run each micro-batch forward and backward, as ``Strategy.forward_backward`` says; return the summed loss."""
    total: Tensor | None = None
    for index, batch in enumerate(batches):
        loss = loss_of(batch, index)
        # The weight enters as the gradient of the loss, which spares a multiplication each way.
        torch.autograd.backward(loss, weight)
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None, "a step has at least one micro-batch"
    return total
