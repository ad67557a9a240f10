"""Cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from engine import UsageError

from .objective import Objective, class_numbers, main_head


class CrossEntropy(Objective):
    """-sum_k q_k log softmax(outputs)_k, where q is the label, mixed with ``label_smoothing`` of the uniform one.

    Targets: class numbers, or soft labels [n, classes]. Label smoothing is that of Szegedy et al. 2016
    ("Rethinking the Inception architecture"): q = (1 - s) label + s / classes.
    """

    softmax = True

    def __init__(self, label_smoothing: float, reduction: str, auxiliary: float, top5: bool) -> None:
        super().__init__(reduction, auxiliary)
        self.label_smoothing, self.top5 = label_smoothing, top5
        if top5:
            self.metrics = {"accuracy": True, "top5": True}

    def outputs(self, classes: int) -> int:
        """Return one output per class. Raises UsageError where top5 could never be wrong."""
        if self.top5 and classes <= 5:
            raise UsageError(f"loss.top5=true needs more than 5 classes, the data has {classes}: set loss.top5=false")
        return classes

    def of_head(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one head's cross-entropy, summed over the samples."""
        return functional.cross_entropy(outputs, targets, reduction="sum", label_smoothing=self.label_smoothing)

    def measure(self, outputs: Any, targets: Tensor) -> Sequence[Tensor]:
        """Return how many samples are right, and with ``top5`` how many have their class among the five highest."""
        measures = super().measure(outputs, targets)
        if not self.top5:
            return measures
        highest = main_head(outputs).topk(5, sorted=False).indices
        return [*measures, (highest == class_numbers(targets)[:, None]).count_nonzero()]
