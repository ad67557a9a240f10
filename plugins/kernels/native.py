"""Leaving convolutions to torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from engine.convolutions import restore
from engine.interfaces import KernelChooser, KernelRow


class NativeChooser(KernelChooser):
    """Leaves every convolution to torch, without the trial run that planning kernels takes."""

    def apply(self, model: nn.Module, inputs: tuple[int, int, int, int], **settings: Any) -> Sequence[KernelRow]:
        """Take out what another chooser has put in; return a row for each convolution."""
        restore(model)
        return [
            KernelRow(layer, "native", "torch's own")
            for layer, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
        ]
