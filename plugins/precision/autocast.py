"""torch's autocast as a policy uses it, and which parameters it keeps in single precision."""

from __future__ import annotations

import torch
from torch import nn

from engine.binary.conversion import NORMS


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which convolutions and matrix products are of ``dtype``, and sums of many numbers float32.

    Cast weights are not kept: some versions of torch hand a weight first met under ``no_grad`` to the pass that needs
    its gradient (pytorch/pytorch#65766), and a context is that of one forward pass, which meets a weight once.
    """
    return torch.autocast(device.type, dtype, cache_enabled=False)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters are; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def normalization_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters of normalising layers.

    Autocast has them compute with float32 parameters and statistics whatever the type of what they read.
    """
    return {
        f"{name}.{own}" if name else own
        for name, module in model.named_modules()
        if isinstance(module, NORMS)
        for own, _ in module.named_parameters(recurse=False)
    }
