"""Histograms of weights and gradients, an addition to the TensorBoard observer for those who ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from engine import hookimpl

from .event_file import TensorBoard

if TYPE_CHECKING:
    from engine import Run


class TensorBoardHistograms(TensorBoard):
    """Also writes the distributions of each parameter and its gradient, every ``every`` logs and at the last step.

    The gradient is the logged step's as backward left it: before clipping, times the loss scale where there is one.
    """

    def __init__(self, images: int, every: int) -> None:
        super().__init__(images)
        self._every = every
        self._logs = 0  # so far in this process
        self._gradients: list[tuple[str, Tensor]] = []

    @hookimpl
    def on_backward_end(self, run: Run) -> None:
        """Copy the gradients of a step whose log will have histograms; what follows clips and clears them."""
        if run.logging and self._due(run, run.position.step + 1):
            self._gradients = [
                (name, p.grad.detach().clone()) for name, p in run.model.named_parameters() if p.grad is not None
            ]

    @hookimpl
    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        """Write the numbers, and histograms if they are due."""
        super().on_log(run, scalars)
        if self._due(run, run.position.step):
            weights = [(name, p.detach()) for name, p in run.model.named_parameters()]
            self._write(run, "weights", weights)
            self._write(run, "gradients", self._gradients)
            self._gradients = []
        self._logs += 1

    def _due(self, run: Run, step: int) -> bool:
        return (self._logs + 1) % self._every == 0 or step == run.steps

    def _write(self, run: Run, kind: str, tensors: list[tuple[str, Tensor]]) -> None:
        with self._writing(run) as writer:
            for name, tensor in tensors:
                values = tensor.double().flatten()
                values = values[values.isfinite()]  # an infinity has no place on a histogram's axis
                if len(values):
                    writer.add_histogram(f"{kind}/{name}", values, run.position.step)
