"""torch's fused optimisers, whose step a flag on the device can cancel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, AdamW, Optimizer

from engine import UsageError

FUSABLE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class FusedSGD(SGD):
    """torch's fused SGD with momentum buffers from the start, and a step that the host spends little time on.

    torch collects parameters, buffers and their types anew at every step, which takes longer than updating a small
    network. ``step_unless`` keeps them; the arithmetic is the same kernel's, bit for bit.
    """

    capturable = True  # a CUDA graph may hold ``step_unless``: it asks for no number and changes tensors in place
    _lists: Sequence[tuple[int, list[Tensor], list[Tensor]]] = ()

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, fused=True, **settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as torch does, with buffers of zeros.

        torch would make the buffers at the first step, from uninitialised memory if that step is cancelled. Zeros give
        the same first update: momentum x 0 + gradient.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"] if group["momentum"] else []:
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self._lists = ()

    @torch.no_grad()
    def step_unless(self, bad: Tensor) -> None:
        """Update, unless ``bad`` (float32 scalar on the device) is 1.0: then parameters and state keep every bit."""
        if not self._lists_hold():
            self._lists = self._make_lists()
        for index, parameters, buffers in self._lists:
            grads = [g for p in parameters if (g := p.grad) is not None]
            if len(grads) < len(parameters):  # this step did not reach them all
                buffers = [b for p, b in zip(parameters, buffers, strict=False) if p.grad is not None]
                parameters = [p for p in parameters if p.grad is not None]
            if not grads:
                continue
            group = self.param_groups[index]
            updated, given, moved = _in_memory_order(parameters, grads, buffers)
            torch._fused_sgd_(
                updated,
                given,
                moved,
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=group["nesterov"],
                maximize=False,
                is_first_step=False,
                found_inf=bad,
            )
            _write_back(parameters, parameters, updated)
            _write_back(buffers, parameters[: len(buffers)], moved)

    def _lists_hold(self) -> bool:
        """Return whether the lists exist and the buffers in them are the state's: a checkpoint brings others."""
        if not self._lists:
            return False
        _, parameters, buffers = self._lists[0]
        return not buffers or self.state[parameters[0]]["momentum_buffer"] is buffers[0]

    def _make_lists(self) -> list[tuple[int, list[Tensor], list[Tensor]]]:
        """Return (group's index, parameters, momentum buffers), each of one type, as the kernel wants them."""
        lists = []
        for index, group in enumerate(self.param_groups):
            kinds: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                kinds[parameter.dtype].append(parameter)
            for parameters in kinds.values():
                buffers = [self.state[p]["momentum_buffer"] for p in parameters] if group["momentum"] else []
                lists.append((index, parameters, buffers))
        return lists


def _in_memory_order(parameters: list[Tensor], *others: list[Tensor]) -> list[list[Tensor]]:
    """Return parameters, and what belongs to them, as views in the order of the parameters' memory.

    The kernel goes through memory, whatever the strides, so the tensors of a parameter must agree in them; and it is
    quick with contiguous ones alone: 25 ms instead of 5 for six layers of 512 x 512 x 3 x 3 in NHWC order. What cannot
    be seen as contiguous in that order is copied; ``_write_back`` takes the copies home.
    """
    every = (parameters, *others)
    if all(tensor.is_contiguous() for each in every for tensor in each):
        return list(every)
    return [[t.permute(_order(p)).contiguous() for t, p in zip(each, parameters, strict=False)] for each in every]


def _write_back(owners: list[Tensor], parameters: list[Tensor], views: list[Tensor]) -> None:
    """Copy into ``owners``, which belong to ``parameters``, what the kernel wrote elsewhere."""
    for owner, parameter, view in zip(owners, parameters, views, strict=True):
        if view.data_ptr() != owner.data_ptr():
            owner.permute(_order(parameter)).copy_(view)


def _order(tensor: Tensor) -> list[int]:
    """Return the axes as they come in memory, the slowest first."""
    return sorted(range(tensor.ndim), key=tensor.stride, reverse=True)


def sgd(
    groups: list[dict[str, Any]], lr: float, momentum: float, nesterov: bool, weight_decay: float, decay_all: bool
) -> Optimizer:
    """Return SGD over ``groups``; weight decay is added to the gradient, as torch and Krizhevsky's networks do.

    Raises UsageError for Nesterov without momentum.
    """
    if nesterov and momentum == 0:
        raise UsageError("optim.nesterov=true needs optim.momentum above 0")
    decayed = _decayed(groups, weight_decay, decay_all)
    kind = FusedSGD if _fusable(groups) else SGD
    return kind(decayed, lr=lr, momentum=momentum, nesterov=nesterov)


def adamw(
    groups: list[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decay_all: bool,
) -> Optimizer:
    """Return AdamW over ``groups``. Raises UsageError for a beta of 1, which would never forget."""
    for name, beta in zip(("beta1", "beta2"), betas, strict=True):
        if beta == 1:
            raise UsageError(f"optim.{name}=1: must be below 1")
    decayed = _decayed(groups, weight_decay, decay_all)
    return AdamW(decayed, lr=lr, betas=betas, eps=eps, fused=_fusable(groups))


def adagrad(
    groups: list[dict[str, Any]], lr: float, initial: float, eps: float, weight_decay: float, decay_all: bool
) -> Optimizer:
    """Return Adagrad over ``groups``; weight decay is added to the gradient. torch has a fused one on CPUs alone."""
    decayed = _decayed(groups, weight_decay, decay_all)
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    fused = on_cpu and _fusable(groups)
    return Adagrad(decayed, lr=lr, initial_accumulator_value=initial, eps=eps, fused=fused or None)


def _decayed(groups: list[dict[str, Any]], weight_decay: float, decay_all: bool) -> list[dict[str, Any]]:
    """Return the groups with their weight decay: none where ``decays`` is False, unless all decay.

    Groups that nothing tells apart become one, which one kernel updates.
    """
    merged: list[tuple[dict[str, Any], dict[str, list[Any]]]] = []  # settings, and what has them
    for group in groups:
        own = {key: value for key, value in group.items() if key not in ("params", "names", "decays")}
        own["weight_decay"] = weight_decay if decay_all or group["decays"] else 0.0
        alike = next((lists for settings, lists in merged if settings == own), None)
        if alike is None:
            merged.append((own, {"params": list(group["params"]), "names": list(group["names"])}))
        else:
            alike["params"] += group["params"]
            alike["names"] += group["names"]
    return [{**settings, **lists} for settings, lists in merged]


def _fusable(groups: list[dict[str, Any]]) -> bool:
    """Return whether torch has a fused step for every parameter: floats on a CPU or a CUDA device."""
    return all(p.dtype in FUSABLE and p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
