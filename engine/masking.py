"""An optimiser step that a flag on the device can cancel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer


def maskable(optimizer: Optimizer) -> bool:
    """Return whether the optimiser cancels a step on the device, so that the host need not read the flag.

    torch's fused optimisers do, and say so with the attribute that its GradScaler looks for.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def masked_step(optimizer: Optimizer, bad: Tensor) -> None:
    """Step, unless ``bad`` (float32 scalar on the device) is 1.0: then parameters and state keep every bit.

    An optimiser that is not ``maskable`` makes the host wait for the flag and the learning rates, read in one
    transfer, and is given the rates as Python numbers, because some accept no tensors.
    """
    step_unless = getattr(optimizer, "step_unless", None)  # what an optimiser may offer: step(), given the flag
    if step_unless is not None:
        step_unless(bad)
        return
    if maskable(optimizer):
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.step()
        return
    tensors = [group["lr"] for group in optimizer.param_groups if isinstance(group["lr"], Tensor)]
    flag, *numbers = torch.stack([bad.reshape(()), *(rate.reshape(()) for rate in tensors)]).tolist()
    if flag:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    read = iter(numbers)
    try:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"] = next(read)
        optimizer.step()
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
