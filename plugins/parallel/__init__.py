"""Built-in strategies: single, data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Parallel, hookimpl, option

if TYPE_CHECKING:
    from engine.interfaces import Strategy
    from engine.registry import Store


@dataclass
class Single(Parallel):
    """One process does all the work."""

    processes: int = option(1, "one process", at_least=1, at_most=1)

    def build(self) -> Strategy:
        """Make the strategy."""
        from .single import SingleProcess

        return SingleProcess()


@dataclass
class Data(Parallel):
    """Every process computes a share of each batch; gradients are summed."""

    bucket_mb: float = option(25.0, "gradients that are summed together, in MiB", above=0)
    find_unused: bool = option(False, "look in every step for parameters that no gradient reaches")
    verify_every: int = option(1000, "updates after which all processes' parameters are compared; 0: never", at_least=0)

    def build(self) -> Strategy:
        """Make the strategy."""
        from .data import DataParallel

        return DataParallel(self.bucket_mb, self.find_unused, self.verify_every)


@dataclass
class LocalSGD(Parallel):
    """Every process trains by itself on a share of each batch; now and then their weights are brought together."""

    every: int = option(16, "steps between two times that weights are brought together", at_least=1)
    outer: str = option(
        "average", "how: the processes' mean, or a Nesterov step towards it (DiLoCo)", choices=("average", "nesterov")
    )
    outer_lr: float = option(0.7, "learning rate of the Nesterov step", above=0)
    outer_momentum: float = option(0.9, "its momentum", at_least=0, below=1)
    warm_up: int = option(0, "steps at the start in which gradients are averaged instead, as in data", at_least=0)

    def build(self) -> Strategy:
        """Make the strategy."""
        from .local_sgd import Average, LocalTraining, Nesterov

        outer = Average() if self.outer == "average" else Nesterov(self.outer_lr, self.outer_momentum)
        return LocalTraining(outer, self.every, self.warm_up)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in strategies."""
    store.add("parallel", "single", Single)
    store.add("parallel", "data", Data)
    store.add("parallel", "local_sgd", LocalSGD)
