"""Built-in losses: cross_entropy, squared_hinge, mse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Loss, hookimpl, option

if TYPE_CHECKING:
    from engine.interfaces import LossFunction
    from engine.registry import Store

REDUCTIONS = ("mean", "sum")


@dataclass
class CrossEntropy(Loss):
    """Cross-entropy of the softmax, for class numbers or soft labels."""

    label_smoothing: float = option(0.0, "share of every label spread evenly over all classes", at_least=0, at_most=1)
    reduction: str = option("mean", "mean or sum over a step's samples", choices=REDUCTIONS)
    auxiliary: float = option(0.3, "weight of every further head of a model with several outputs", at_least=0)
    top5: bool = option(False, "also measure how often the true class is among the five highest scores")

    def build(self) -> LossFunction:
        """Make the loss function."""
        from .cross_entropy import CrossEntropy

        return CrossEntropy(self.label_smoothing, self.reduction, self.auxiliary, self.top5)


@dataclass
class SquaredHinge(Loss):
    """Squared hinge, every class against the rest, as binary networks are trained."""

    reduction: str = option("mean", "mean or sum over a step's samples", choices=REDUCTIONS)
    auxiliary: float = option(0.3, "weight of every further head of a model with several outputs", at_least=0)

    def build(self) -> LossFunction:
        """Make the loss function."""
        from .squared_hinge import SquaredHinge

        return SquaredHinge(self.reduction, self.auxiliary)


@dataclass
class MSE(Loss):
    """Mean squared error, for regression or for classes as one-hot vectors."""

    targets: str = option(
        "classes", "what the targets are: classes, or values to regress", choices=("classes", "values")
    )
    reduction: str = option("mean", "mean or sum over a step's samples", choices=REDUCTIONS)
    auxiliary: float = option(0.3, "weight of every further head of a model with several outputs", at_least=0)

    def build(self) -> LossFunction:
        """Make the loss function."""
        from .mse import MeanSquaredError

        return MeanSquaredError(self.targets, self.reduction, self.auxiliary)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in losses."""
    store.add("loss", "cross_entropy", CrossEntropy)
    store.add("loss", "squared_hinge", SquaredHinge)
    store.add("loss", "mse", MSE)
