"""torch's fused optimisers, whose step a flag on the device can cancel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from engine import UsageError

FUSABLE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class FusedSGD(SGD):
    """torch's fused SGD with momentum buffers from the start, and a step that the host spends little time on.

    torch collects parameters, buffers and their types anew at every step, which takes longer than updating a small
    network. ``step_unless`` keeps them; the arithmetic is the same kernel's, bit for bit.
    """

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
        gradients = [[g for p in parameters if (g := p.grad) is not None] for _, parameters, _ in self._lists]
        if any(len(g) < len(listed[1]) for g, listed in zip(gradients, self._lists, strict=True)):
            self.grad_scale, self.found_inf = None, bad  # torch sorts out those that this step did not reach
            self.step()
            return
        for (index, parameters, buffers), grads in zip(self._lists, gradients, strict=True):
            group = self.param_groups[index]
            torch._fused_sgd_(
                *_in_memory_order(parameters, grads, buffers),
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=group["nesterov"],
                maximize=False,
                is_first_step=False,
                found_inf=bad,
            )

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
    """Return the lists with filters in NHWC order, and what belongs to them, as views in the order of their memory.

    The kernel goes through memory in order, and copies what is not contiguous: 25 ms instead of 5 for six layers of
    512 x 512 x 3 x 3. The arithmetic is by element, so only a parameter, its gradient and its buffer must agree.
    """
    turned = {i for i, p in enumerate(parameters) if p.ndim == 4 and not p.is_contiguous()}
    if not turned:
        return [parameters, *others]

    def view(tensor: Tensor, index: int) -> Tensor:
        return tensor.permute(0, 2, 3, 1).contiguous() if index in turned else tensor

    return [[view(tensor, index) for index, tensor in enumerate(each)] for each in (parameters, *others)]


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
