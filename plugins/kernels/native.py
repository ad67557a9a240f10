"""Leaving convolutions to torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from engine.interfaces import KernelChooser, KernelRow


class NativeChooser(KernelChooser):
    """Leaves every convolution as it is."""

    def apply(self, model: nn.Module, inputs: tuple[int, int, int, int], **settings: Any) -> Sequence[KernelRow]:
        """Return a row for each convolution; the model is unchanged."""
        return [
            KernelRow(layer, "native", "torch's own")
            for layer, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
        ]
