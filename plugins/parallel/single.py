"""One process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from engine import Batch
from engine.backward import one_by_one
from engine.interfaces import Strategy


class SingleProcess(Strategy):
    """Computes everything here; micro-batches run one after the other and their gradients add up."""

    rank = 0
    world = 1
    capturable = True

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Run each micro-batch forward and backward; return the summed loss."""
        return one_by_one(loss_of, batches, weight)

    def clip(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        """Scale gradients so that their global norm is at most ``largest``; return the norm before."""
        norm = self.norm(parameters)
        clip_grads_with_norm_(parameters, largest, norm)
        return norm

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the global norm of the gradients; the host does not wait for it."""
        return get_total_norm([p.grad for p in parameters if p.grad is not None])
