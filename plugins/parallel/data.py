"""Data parallelism: every process has the whole model and a share of each micro-batch; gradients are summed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine import Batch, Key, UsageError
from engine.distributed.group import ALONE, Group, entered
from engine.distributed.together import Together, average_
from engine.interfaces import Precision

from .batch_norm import own_statistics, synchronise
from .communication import Buckets, Sending, distributed, gradient_type, settle_buckets


class DataParallel(Together):
    """Synchronous data parallelism by torch's DistributedDataParallel, whose buckets are summed while others compute.

    Gradients are those of the loss over all processes' samples, whatever the share of each; with several micro-batches
    they are sent with the last. BatchNorm's running statistics are averaged over processes after every step, unless
    ``synchronised`` makes them those of all samples, so that all have the same model at any time. ``sending(group)``
    says what is sent of a bucket.
    """

    def __init__(
        self,
        sending: Callable[[Group], Sending],
        bucket_mb: float = 25.0,
        find_unused: bool = False,
        synchronised: bool = False,
        verify_every: int = 0,
    ) -> None:
        super().__init__(verify_every)
        self._bucket_mb, self._find_unused, self._synchronised = bucket_mb, find_unused, synchronised
        self._sending = sending
        self._buckets = Buckets(self.group, sending(self.group))
        self._network: DistributedDataParallel | None = None
        self._trained: dict[str, nn.Parameter] = {}
        self._statistics: list[Tensor] = []

    def shard(self, model: nn.Module) -> nn.Module:
        """Have BatchNorm layers compute over all processes' samples, where that was asked for.

        Raises UsageError for gradients that are wider than their parameters.
        """
        if self._synchronised:
            synchronise(model)
        if self.world > 1 and any(gradient_type(p) != p.dtype for p in model.parameters()):
            raise UsageError(
                "parallel=data: this numeric policy has float32 gradients of narrower weights, which torch's "
                f"DistributedDataParallel does not take: choose precision=bfloat16, or parallel.canonical={self.world}"
            )
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap the model; alone there is nothing to wrap."""
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._statistics = own_statistics(model)
        self._buckets = Buckets(self.group, self._sending(self.group))  # a stage has buckets of its own
        self.replicated = self._trained
        if self.world == 1:
            return model
        with self.group.guarded("broadcast model"):
            self._network = distributed(model, self._buckets.hook, self._bucket_mb, self._find_unused)
        return self._network

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Have the buckets laid out as they stay, with which a resumed run adds up as the undisturbed one does.

        Raises UsageError naming the parameters that no gradient reaches.
        """
        if self._network is not None and not self._find_unused:
            if names := settle_buckets(self._network, self.example, self.precision, self.group):
                raise UsageError(unreached(names, self.rank))
            self._buckets.sending = self._sending(self.group)  # which counts steps, of which that was none

    def evaluating(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which BatchNorm waits for no other process, whatever mode it is in."""
        return entered(ALONE)

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Run each micro-batch forward and backward; gradients are sent with the last.

        Raises UsageError naming the parameters that no gradient reaches.
        """
        total: Tensor | None = None
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with nullcontext() if last or self._network is None else self._network.no_sync():
                loss = loss_of(batch, index)
                self._buckets.expect()
                with self.group.guarded("all_reduce gradients"):
                    torch.autograd.backward(loss, weight)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step has at least one micro-batch"
        if self._network is not None and not self._buckets.complete():
            reached = set(leaves(loss.grad_fn))
            names = [name for name, parameter in self._trained.items() if id(parameter) not in reached]
            raise UsageError(unreached(names, self.rank))
        average_(self.group, self._statistics, "statistics")
        return total

    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply the optimiser's step through the precision, unless ``bad`` is 1.0."""
        super().update(precision, optimizer, bad)
        self._buckets.sending.settle(bad)


def unreached(names: Sequence[str], rank: int) -> str:
    """Return a line on parameters that no gradient reaches."""
    return (
        f"parallel=data: no gradient of rank {rank} reaches {', '.join(names[:4])}{' and others' * (len(names) > 4)}: "
        "take them out of the model, freeze them, or set parallel.find_unused=true (slower)"
    )


def leaves(root: Any) -> Iterable[int]:
    """Yield the ids of the tensors at the ends of a graph of autograd's nodes."""
    waiting, seen = [root], {root}
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            yield id(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
