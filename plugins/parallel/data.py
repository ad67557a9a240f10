"""Data parallelism: every process has the whole model and a share of each micro-batch; gradients are summed."""

# Annotations are not postponed here: torch looks at those of a communication hook.

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from engine import Batch, UsageError
from engine.distributed.together import Together, average_


class DataParallel(Together):
    """Synchronous data parallelism by torch's DistributedDataParallel, whose buckets are summed while others compute.

    Gradients are those of the loss over all processes' samples, whatever the share of each. BatchNorm's running
    statistics are averaged over processes after every step, so that all have the same model at any time.
    """

    def __init__(self, bucket_mb: float, find_unused: bool, verify_every: int) -> None:
        super().__init__(verify_every)
        self._bucket_mb, self._find_unused = bucket_mb, find_unused
        self._network: DistributedDataParallel | None = None
        self._trained: dict[str, nn.Parameter] = {}
        self._statistics: list[Tensor] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap the model; alone there is nothing to wrap."""
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.replicated = self._trained
        if self.world == 1:
            return model
        with warnings.catch_warnings():  # its new name came with torch 2.13, and does something else
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._network = DistributedDataParallel(
                model,
                bucket_cap_mb=self._bucket_mb,
                find_unused_parameters=self._find_unused,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self._network.register_comm_hook(None, self._sum)
        return self._network

    def _sum(self, state: None, bucket: GradBucket) -> Future[Tensor]:
        pending = self.group.begin_all_reduce(bucket.buffer(), "gradients")
        return pending.work.get_future().then(lambda done: done.value()[0])

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Run each micro-batch forward and backward; gradients are sent with the last."""
        total: Tensor | None = None
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with nullcontext() if last or self._network is None else self._network.no_sync():
                loss = loss_of(batch, index)
                with self.group.guarded("all_reduce gradients"):
                    torch.autograd.backward(loss, weight)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step has at least one micro-batch"
        self._require_gradients()
        average_(self.group, self._statistics, "statistics")
        return total

    def _require_gradients(self) -> None:
        if self.world == 1 or self._find_unused:
            return
        unused = [name for name, parameter in self._trained.items() if parameter.grad is None]
        if unused:
            raise UsageError(
                f"parallel=data: no gradient reaches {', '.join(unused[:4])}{' and others' * (len(unused) > 4)}: take "
                "them out of the model, freeze them, or set parallel.find_unused=true (slower)"
            )
