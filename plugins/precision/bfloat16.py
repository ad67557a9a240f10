"""bfloat16 where it is quick, with float32 weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.interfaces import Precision

from .autocast import autocast, device_of


class Bfloat16(Precision):
    """Convolutions and matrix products are bfloat16; weights, their gradients, sums and optimiser state are float32.

    That is torch's autocast. bfloat16 has the exponents of float32, so the loss is not scaled. A CPU without
    instructions for it (avx512_bf16, amx_bf16) computes the same, slower than in float32; so does one of Intel's that
    has avx512_bf16 without AMX, whose instruction does no more in a cycle than those for float32.
    """

    dtype = torch.float32
    capturable = True

    def __init__(self) -> None:
        self._device = torch.device("cpu")  # of the model, once it is converted

    def convert(self, model: nn.Module) -> nn.Module:
        """Return the model with float32 weights."""
        self._device = device_of(model)
        return model.to(self.dtype)

    def forward(self, samples: Tensor | None = None) -> torch.autocast:
        """Return autocast's context."""
        return autocast(self._device, torch.bfloat16)

    def export(self, model: nn.Module) -> nn.Module:
        """Return the model in float32."""
        return model.to(self.dtype)
