"""torch's fused optimisers, whose step a flag on the device can cancel."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import SGD, AdamW, Optimizer

from engine import UsageError

FUSABLE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def sgd(
    groups: list[dict[str, Any]], lr: float, momentum: float, nesterov: bool, weight_decay: float, decay_all: bool
) -> Optimizer:
    """Return SGD over ``groups``; weight decay is added to the gradient, as torch and Krizhevsky's networks do.

    Raises UsageError for Nesterov without momentum.
    """
    if nesterov and momentum == 0:
        raise UsageError("optim.nesterov=true needs optim.momentum above 0")
    decayed = _decayed(groups, weight_decay, decay_all)
    optimizer = SGD(decayed, lr=lr, momentum=momentum, nesterov=nesterov, fused=_fusable(groups))
    if momentum:
        # torch would make these at the first step, from uninitialised memory if that step is cancelled. Zeros
        # give the same first update: momentum x 0 + gradient.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


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
    """Return the groups with their weight decay: none where ``decays`` is False, unless all decay."""
    return [{**group, "weight_decay": weight_decay if decay_all or group["decays"] else 0.0} for group in groups]


def _fusable(groups: list[dict[str, Any]]) -> bool:
    """Return whether torch has a fused step for every parameter: floats on a CPU or a CUDA device."""
    return all(p.dtype in FUSABLE and p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
