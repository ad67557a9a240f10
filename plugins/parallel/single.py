"""One process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from engine import Batch
from engine.interfaces import Strategy


class SingleProcess(Strategy):
    """Computes everything here; micro-batches run one after the other and their gradients add up."""

    rank = 0
    world = 1
    capturable = True

    def forward_backward(
        self, loss_of: Callable[[Batch, int], Tensor], batches: Sequence[Batch], weight: Tensor
    ) -> Tensor:
        """Run each micro-batch forward and backward; return the summed loss."""
        total: Tensor | None = None
        for index, batch in enumerate(batches):
            loss = loss_of(batch, index)
            # The weight enters as the gradient of the loss, which spares a multiplication each way.
            torch.autograd.backward(loss, weight)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step has at least one micro-batch"
        return total

    def clip(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        """Scale gradients so that their global norm is at most ``largest``; return the norm before."""
        norm = self.norm(parameters)
        clip_grads_with_norm_(parameters, largest, norm)
        return norm

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the global norm of the gradients; the host does not wait for it."""
        return get_total_norm([p.grad for p in parameters if p.grad is not None])
