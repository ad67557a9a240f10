"""Data parallelism in which each process keeps a part of every parameter, gradient and optimiser state alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.utils import get_total_norm

from engine import Batch, Key, UsageError
from engine.distributed.group import ALONE, Group, entered
from engine.distributed.together import Together, average_
from engine.interfaces import Precision
from engine.pieces import Piece, local
from engine.quantization.layers import Pass

from .batch_norm import own_statistics, synchronise
from .communication import gradient_type


class FullySharded(Together):
    """Synchronous data parallelism by torch's FSDP2: parameters are whole only while a part of the model computes.

    The parts are the model's children (those of containers), and what is left over. Gradients are sums over processes
    and are sent with the last micro-batch, each process getting its part. The optimiser sees this process's parts as
    plain tensors, so any works that treats every number by itself. What a checkpoint holds is the same as without.
    """

    def __init__(self, synchronised: bool = False, verify_every: int = 0) -> None:
        super().__init__(verify_every)
        self._synchronised = synchronised
        self._units: list[FSDPModule] = []  # the root last
        self._parts: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}  # trained ones, and this process's part of each
        self._statistics: list[Tensor] = []
        self._placed: dict[str, DTensor] = {}

    def shard(self, model: nn.Module) -> nn.Module:
        """Keep this process's part of each parameter. Raises UsageError for a numeric policy that needs the whole."""
        if self._synchronised:
            synchronise(model)
        if self.world == 1:
            return model
        require_plain_numbers(model)
        if isinstance(model, FSDPModule):
            self._pass_on_what_trains(model)
        else:
            self._shard(model)
        self._placed = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
        return model

    def _shard(self, model: nn.Module) -> None:
        device = next(model.parameters()).device.type
        mesh = DeviceMesh.from_group(self.group.process_group, device)
        gather: Any = Gather(self.group)  # torch names the classes for these in private modules only
        scatter: Any = Scatter(self.group)
        for unit in (*units(model), model):
            keeps = any(not isinstance(parameter, DTensor) for parameter in unit.parameters())
            sharded = fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not model)
            sharded.set_gradient_divide_factor(1.0)  # a sum
            sharded.set_force_sum_reduction_for_comms(True)
            if keeps:
                sharded.set_custom_all_gather(gather)
                sharded.set_custom_reduce_scatter(scatter)
            self._units.append(sharded)

    def _pass_on_what_trains(self, model: nn.Module) -> None:
        """Have whole parameters train where their parts do, which another stage may have changed."""
        trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        for unit in self._units:
            unit.unshard()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trains[name])
        for unit in self._units:
            unit.reshard()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model, which does by itself what is needed."""
        self._statistics = own_statistics(model)
        self._parts = {n: (p, nn.Parameter(local(p.detach()))) for n, p in model.named_parameters() if p.requires_grad}
        return model

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Give the optimiser this process's parts in place of the parameters."""
        if self.world == 1:
            return
        part_of = dict(self._parts.values())
        for parameter, part in part_of.items():
            if state := optimizer.state.pop(parameter, None):
                optimizer.state[part] = {n: local(v) if isinstance(v, Tensor) else v for n, v in state.items()}
        for group in optimizer.param_groups:
            group["params"][:] = [part_of[parameter] for parameter in group["params"]]

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Run each micro-batch forward and backward; gradients are sent with the last.

        Raises UsageError naming the parameters that no gradient reaches.
        """
        total: Tensor | None = None
        for index, batch in enumerate(batches):
            for unit in self._units:
                unit.set_requires_gradient_sync(index == len(batches) - 1, recurse=False)
            loss = loss_of(batch, index)
            with self.group.guarded("reduce_scatter gradients"):
                torch.autograd.backward(loss, weight)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step has at least one micro-batch"
        if self.world > 1:
            self._hand_over()
        average_(self.group, self._statistics, "statistics")
        return total

    def _hand_over(self) -> None:
        """Give the parts their gradients."""
        unused = [name for name, (parameter, _) in self._parts.items() if parameter.grad is None]
        if unused:
            raise UsageError(
                f"parallel.sharded=true: no gradient of rank {self.rank} reaches {', '.join(unused[:4])}"
                f"{' and others' * (len(unused) > 4)}: take them out of the model or freeze them"
            )
        for parameter, part in self._parts.values():
            assert parameter.grad is not None
            part.grad = local(parameter.grad)

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the global norm of the gradients, of which every process has a part."""
        norm = get_total_norm([local(p.grad) for p in parameters if p.grad is not None])
        return norm if self.world == 1 else self.group.all_reduce(norm**2, "norm").sqrt()

    def clip(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        """Scale gradients so that their true global norm is at most ``largest``; return the norm before."""
        norm = self.norm(parameters)
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], factor)
        return norm

    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply the optimiser's step to this process's parts, unless ``bad`` is 1.0."""
        super().update(precision, optimizer, bad)
        for _, part in self._parts.values() if self.world > 1 else ():
            part.grad = None

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        """Within ``with``, all parameters are whole, and no process waits for another."""
        self._keep_whole(True)
        for unit in self._units:
            unit.unshard()
        try:
            with entered(ALONE):  # BatchNorm, where it is synchronised
                yield
        finally:
            self._keep_whole(False)
            for unit in self._units:
                unit.reshard()
            if self._units:
                # In what order the next backward pass makes parameters whole must not depend on how many batches a
                # process has evaluated; torch has no public way to forget those.
                self._units[-1]._get_fsdp_state()._comm_ctx.post_forward_order.clear()

    def _keep_whole(self, whole: bool) -> None:
        for unit in self._units:
            root = unit is self._units[-1]
            unit.set_reshard_after_forward(not whole and not root, recurse=False)
            unit.set_reshard_after_backward(not whole, recurse=False)

    def pieces(self, state: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Return this process's parts of parameters, and of tensors like them, and whole buffers."""
        found = {}
        for name, value in state.items():
            values, placed = local(value.detach()), self._placed.get(name)
            if placed is None:
                found[name] = Piece.whole(values, self.leads)
                continue
            shape, offsets = compute_local_shape_and_global_offset(placed.shape, placed.device_mesh, placed.placements)
            assert tuple(values.shape) == tuple(shape), f"{name} is {list(values.shape)} instead of {list(shape)}"
            found[name] = Piece(values, tuple(placed.shape), tuple(offsets), writes=values.numel() > 0)
        return found

    def describe(self) -> str:
        """Return how many processes there are, how they are connected, and what each of them keeps."""
        parameters = sum(parameter.numel() for parameter in self._placed.values())
        kept = sum(local(parameter.detach()).numel() for parameter in self._placed.values())
        return f"{super().describe()}; this one keeps {kept:,} of {parameters:,} parameters" if parameters else ""


class Gather:
    """Makes parameters whole, in FSDP2's place for it: counted and watched."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for what is sent or received."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Collect the processes' parts; return what is to be waited for, if it is not over."""
        pending = self._group.begin_all_gather(input_tensor, "parameters", output_tensor)
        if async_op:
            return pending.work
        pending.wait()
        return None


class Scatter(Gather):
    """Sums gradients over processes in the order of ranks, of which each gets its part."""

    def __call__(  # type: ignore[override]
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        """Sum, and give each process its part."""
        summed = self._group.reduce_scatter(input_tensor.view(self._group.world, -1), "gradients")
        output_tensor.copy_(summed.view_as(output_tensor))


def units(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the children of a model that have parameters; of containers that compute nothing, theirs."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from units(child)
        elif any(True for _ in child.parameters()):
            yield child


def require_plain_numbers(model: nn.Module) -> None:
    """Raise UsageError for a model whose numeric policy needs whole parameters."""
    rounds = any(isinstance(getattr(hook, "__self__", None), Pass) for hook in model._forward_pre_hooks.values())
    types = {p.dtype for p in model.parameters()} | {gradient_type(p) for p in model.parameters()}
    if rounds or len(types) > 1:
        raise UsageError(
            "parallel.sharded=true: this numeric policy rounds parameters as a whole, and a process has parts of them: "
            "choose precision=float32, float64 or bfloat16, or parallel.sharded=false"
        )
