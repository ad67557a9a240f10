"""Mean squared error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from engine import UsageError

from .objective import Objective, main_head


class MeanSquaredError(Objective):
    """The squared difference between outputs and targets, averaged over a sample's outputs.

    targets "classes": class numbers are turned into one-hot vectors (soft labels are taken as they are) and the
    metric is accuracy. targets "values": floats [n, outputs], and the metric is the mean absolute error.
    """

    def __init__(self, targets: str, reduction: str, auxiliary: float) -> None:
        super().__init__(reduction, auxiliary)
        self.regression = targets == "values"
        if self.regression:
            self.metrics = {"mean_absolute_error": False}

    def of_head(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one head's loss, summed over the samples. Raises UsageError for targets of another shape."""
        if not targets.is_floating_point():
            if self.regression:
                raise UsageError("loss.targets=values needs float targets, the data has class numbers: use classes")
            targets = functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
        if outputs.shape != targets.shape:  # torch would broadcast one against the other
            raise UsageError(
                f"loss=mse: the model gives {list(outputs.shape[1:])} numbers a sample, the data "
                f"{list(targets.shape[1:])}: they must be as many"
            )
        return functional.mse_loss(outputs, targets, reduction="sum") / outputs.shape[1]

    def measure(self, outputs: Any, targets: Tensor) -> Sequence[Tensor]:
        """Return how many samples are right, or the sum over the samples of their mean absolute error."""
        if not self.regression:
            return super().measure(outputs, targets)
        scores = main_head(outputs).detach()
        return [functional.l1_loss(scores, targets, reduction="sum") / scores.shape[1]]
