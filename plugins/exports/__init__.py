"""Exporting trained networks to files that need neither the engine's training nor its plugins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Job, hookimpl, option

if TYPE_CHECKING:
    from engine.registry import Store
    from engine.session import Session


@dataclass
class Export(Job):
    """Write a trained network into a file at out= for use elsewhere: packed bits, ONNX, torch.export, tensors."""

    checkpoint: str = option("", "run or checkpoint folder, or weights: .pt, .pth, .th, .safetensors, .caffemodel")
    format: str = option(
        "torch_export", "form of the file: binary packs a network of one bit; the others take any network",
        choices=("binary", "onnx", "state_dict", "torch_export"),
    )  # fmt: skip
    examples: int = option(64, "test images on which the file is compared with the model", at_least=1)

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .export import export

        return export


@hookimpl
def engine_options(store: Store) -> None:
    """Register the job."""
    store.add("job", "export", Export)
