"""Which parameters train, grouped by how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from engine.errors import UsageError
from engine.freezing import Factors


def parameter_groups(model: nn.Module, factors: Mapping[str, Factors] | None = None) -> list[dict[str, Any]]:
    """Return what trains, in groups: filters and matrices, which decay, and vectors (biases, norms), which do not.

    Each group holds "params", their "names", and "decays"; where its parameters' ``factors`` are not 1, also
    "lr_factor" and "decay_factor". The quickest come first. Raises UsageError if nothing trains.
    """
    named: Mapping[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise UsageError("no parameter of the model trains: choose another transfer or model")
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in named.items():
        factor = (factors or {}).get(name, Factors())
        key = (-factor.lr, -factor.decay, parameter.ndim <= 1)
        if key not in groups:
            own = {} if factor == Factors() else {"lr_factor": factor.lr, "decay_factor": factor.decay}
            groups[key] = {"params": [], "names": [], "decays": parameter.ndim > 1, **own}
        groups[key]["params"].append(parameter)
        groups[key]["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def scaled_by_factors(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser, each group's rate and weight decay multiplied by the factors that the group names."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_factor", 1.0)
        if "weight_decay" in group:
            group["weight_decay"] *= group.get("decay_factor", 1.0)
    return optimizer
