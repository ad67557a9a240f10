"""What is sent of a gradient bucket, and how the sum over all processes is made of it."""

# Annotations are not postponed here: torch looks at those of a communication hook.

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from engine.distributed.group import Group, Pending
from engine.interfaces import Precision

ANY_ORDER = 2  # so many numbers have the same sum in any order


class Sending(Protocol):
    """A way to sum buckets over all processes; every process has the same bits afterwards."""

    def begin(self, group: Group, bucket: GradBucket) -> Future[Tensor]:
        """Begin to sum a bucket, whose memory may be written to; the future has the sum, of the bucket's type."""
        ...

    def settle(self, bad: Tensor) -> None:
        """Take note of the step's end; ``bad`` is 1.0 where its gradients were not finite. Default: nothing."""
        return None


class Whole(Sending):
    """Sends gradients as they are."""

    def begin(self, group: Group, bucket: GradBucket) -> Future[Tensor]:
        """Begin to sum a bucket in place."""
        return summed(group.begin_all_reduce(bucket.buffer(), "gradients"))


class Cast(Sending):
    """Sends gradients in a narrower type, in which they are also summed: half the bytes of float32.

    What is too large for it becomes infinite, so that the step is left out.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def begin(self, group: Group, bucket: GradBucket) -> Future[Tensor]:
        """Begin to sum a bucket, rounded to the type."""
        whole = bucket.buffer()
        pending = group.begin_all_reduce(whole.to(self._dtype), f"gradients {self._dtype}".replace("torch.", ""))
        return summed(pending).then(lambda done: whole.copy_(done.value()))


class LowRank(Sending):
    """Sends each matrix of gradients as a product of two narrow ones, and makes up later for what that leaves out.

    Vogels et al., "PowerSGD: practical low-rank gradient compression for distributed optimization", 2019, by torch's
    hook. The first ``begin_at`` steps after a start are sent whole. What is left out is kept by each process for itself
    and is in no checkpoint: a resumed run begins with nothing left out, so that it is not the undisturbed one bit for
    bit. A bucket is complete before the next is begun, because its several collectives must come in the same order
    everywhere.
    """

    def __init__(self, group: Group, rank: int, begin_at: int) -> None:
        self._world = group.world
        self._state = PowerSGDState(
            group.process_group, matrix_approximation_rank=rank, start_powerSGD_iter=begin_at, random_seed=0,
            orthogonalization_epsilon=1e-8,
        )  # fmt: skip

    def begin(self, group: Group, bucket: GradBucket) -> Future[Tensor]:
        """Sum a bucket, approximately."""
        state, whole = self._state, bucket.buffer()
        if state.iter < state.start_powerSGD_iter:
            state.maybe_increase_iter(bucket)
            return summed(group.begin_all_reduce(whole, "gradients"))
        before = state.total_numel_after_compression
        if group.watch is not None:
            group.watch.begin("all_reduce gradients powersgd")
        group.traffic.begin()
        with group.traffic.waiting():
            approximated = powerSGD_hook(state, bucket)
            approximated.wait()
        group.traffic.end()
        numbers = state.total_numel_after_compression - before
        group.traffic.add("all_reduce", 2 * (self._world - 1) / self._world * numbers * whole.element_size())
        return approximated.then(lambda done: done.value().mul_(self._world))  # the hook's is the mean

    def settle(self, bad: Tensor) -> None:
        """Forget what was left out if it is not finite: it would spoil every later step."""
        if bad.item():
            for memory in (self._state.error_dict, self._state.p_memory_dict, self._state.q_memory_dict):
                memory.clear()


def sending_of(compress: str, rank: int, begin_at: int) -> Callable[[Group], Sending]:
    """Return what makes, for a group, the sending that ``parallel.compress`` names."""
    if compress == "none":
        return lambda group: Whole()
    if compress == "powersgd":
        return lambda group: LowRank(group, rank, begin_at)
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}[compress]
    return lambda group: Cast(dtype)


def summed(pending: Pending) -> Future[Tensor]:
    """Return a future of the collective's result, which raises what the collective does."""
    future: Any = pending.work.get_future()
    return future.then(lambda done: done.value()[0])


def gradient_type(parameter: Tensor) -> torch.dtype:
    """Return the type of a parameter's gradients, which a numeric policy may have made wider than its own."""
    return getattr(parameter, "grad_dtype", None) or parameter.dtype


def distributed(
    model: nn.Module, hook: Callable[[None, GradBucket], Future[Tensor]], bucket_mb: float, find_unused: bool = False
) -> DistributedDataParallel:
    """Return a model whose backward pass hands its gradients to ``hook`` in buckets; buffers are left alone."""
    with warnings.catch_warnings():  # the new name of broadcast_buffers came with torch 2.13, and does something else
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        network = DistributedDataParallel(
            model,
            bucket_cap_mb=bucket_mb,
            find_unused_parameters=find_unused,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    network.register_comm_hook(None, hook)
    return network


def settle_buckets(network: nn.Module, example: Sequence[int], precision: Precision | None, group: Group) -> list[str]:
    """Make a first backward pass that counts for nothing: after that one torch lays out its buckets anew, for good.

    Where an element lies decides in which order three or more processes' numbers are added up, so that a run that is
    resumed would add those of its first step in another order than the undisturbed one. example: the shape of a
    process's images; buffers, gradients and what the group has counted are as before. Returns the names of parameters
    that no gradient has reached: then the buckets are not complete, and another pass is impossible.
    """
    if group.world <= ANY_ORDER or not example[0] or not isinstance(network, DistributedDataParallel):
        return []
    trained = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
    first = next(iter(trained.values()))
    kept = [buffer.clone() for buffer in network.buffers()]
    images = torch.zeros(*example, dtype=precision.dtype if precision else first.dtype, device=first.device)
    forward = precision.forward() if precision else nullcontext()
    with group.traffic.uncounted(), torch.enable_grad(), forward, group.guarded("first gradients"):
        made = network(images)
        heads = made if isinstance(made, list | tuple) else [made]
        torch.stack([head.sum() for head in heads]).sum().backward()
    with torch.no_grad():
        for buffer, value in zip(network.buffers(), kept, strict=True):
            buffer.copy_(value)
    unreached = [name for name, parameter in trained.items() if parameter.grad is None]
    for parameter in trained.values():
        parameter.grad = None
    return unreached


class Buckets:
    """DDP's communication hook: hands each bucket to ``sending`` and knows when the last of a pass has begun."""

    def __init__(self, group: Group, sending: Sending) -> None:
        self.sending = sending
        self._group = group
        self._last_begun: float | None = None

    def hook(self, state: None, bucket: GradBucket) -> Future[Tensor]:
        """Begin to sum a bucket."""
        future = self.sending.begin(self._group, bucket)
        if bucket.is_last():
            self._last_begun = time.perf_counter()
        return future

    def expect(self) -> None:
        """Begin a backward pass at whose end gradients are summed."""
        self._last_begun = None

    def complete(self) -> bool:
        """End it: return whether all buckets were sent, and count the time since the last as waited."""
        if self._last_begun is None:
            return False
        self._group.traffic.waited += time.perf_counter() - self._last_begun
        return True
