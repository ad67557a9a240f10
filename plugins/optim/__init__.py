"""Built-in optimisers (sgd, adamw, adagrad) and learning rate schedules (constant, step, cosine, onecycle)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine import Optim, Schedule, hookimpl, option

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from engine.registry import Store


@dataclass
class SGD(Optim):
    """Stochastic gradient descent with momentum."""

    lr: float = option(0.02, "learning rate that the schedule's factor multiplies", above=0)
    momentum: float = option(0.9, "share of the previous update kept", at_least=0, at_most=1)
    nesterov: bool = option(False, "evaluate the gradient ahead, at the momentum's end (Nesterov)")
    weight_decay: float = option(5e-4, "L2 penalty, added to the gradient", at_least=0)
    decay_all: bool = option(False, "also decay biases and normalisation parameters, as He et al. 2015 do")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimiser. Raises UsageError for Nesterov without momentum."""
        from .optimizers import sgd

        return sgd(groups, self.lr, self.momentum, self.nesterov, self.weight_decay, self.decay_all)


@dataclass
class AdamW(Optim):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    lr: float = option(1e-3, "learning rate that the schedule's factor multiplies", above=0)
    beta1: float = option(0.9, "decay of the gradient's average", at_least=0, at_most=1)
    beta2: float = option(0.999, "decay of the squared gradient's average", at_least=0, at_most=1)
    eps: float = option(1e-8, "added to the denominator", above=0)
    weight_decay: float = option(0.01, "share of the weight removed per step, times the learning rate", at_least=0)
    decay_all: bool = option(False, "also decay biases and normalisation parameters")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimiser. Raises UsageError for a beta of 1, which would never forget."""
        from .optimizers import adamw

        return adamw(groups, self.lr, (self.beta1, self.beta2), self.eps, self.weight_decay, self.decay_all)


@dataclass
class Adagrad(Optim):
    """Rates that fall with each weight's own squared gradients (Duchi et al. 2011); steadies parallel=async."""

    lr: float = option(0.01, "learning rate that the schedule's factor multiplies", above=0)
    initial: float = option(0.0, "sum of squares to begin with: above 0, the first updates are smaller", at_least=0)
    eps: float = option(1e-10, "added to the denominator", above=0)
    weight_decay: float = option(0.0, "L2 penalty, added to the gradient", at_least=0)
    decay_all: bool = option(False, "also decay biases and normalisation parameters")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimiser."""
        from .optimizers import adagrad

        return adagrad(groups, self.lr, self.initial, self.eps, self.weight_decay, self.decay_all)


@dataclass
class Constant(Schedule):
    """The same learning rate throughout."""

    warmup: float = option(0.0, "share of the run over which the rate rises linearly first", at_least=0, at_most=1)

    def build(self, updates: int) -> Callable[[int], float]:
        """Return the factor of each update."""
        from .schedules import constant, warmed

        return warmed(constant, updates, self.warmup)


@dataclass
class Step(Schedule):
    """The learning rate multiplied by gamma at each milestone."""

    milestones: list[float] = option([0.5, 0.75], "where to drop, as shares of the run between 0 and 1, ascending")
    gamma: float = option(0.1, "what each milestone multiplies the rate by", above=0)
    warmup: float = option(0.0, "share of the run over which the rate rises linearly first", at_least=0, at_most=1)

    def build(self, updates: int) -> Callable[[int], float]:
        """Return the factor of each update. Raises UsageError for milestones that do not ascend within 0 to 1."""
        from .schedules import step, warmed

        return warmed(step(updates, self.milestones, self.gamma), updates, self.warmup)


@dataclass
class Cosine(Schedule):
    """The learning rate falling along half a cosine (Loshchilov and Hutter 2017, without restarts)."""

    floor: float = option(0.0, "share of the peak rate approached at the end", at_least=0, at_most=1)
    warmup: float = option(0.0, "share of the run over which the rate rises linearly first", at_least=0, at_most=1)

    def build(self, updates: int) -> Callable[[int], float]:
        """Return the factor of each update."""
        from .schedules import cosine, warmed, warmup_updates

        first = warmup_updates(updates, self.warmup)
        return warmed(cosine(first, updates, self.floor), updates, self.warmup)


@dataclass
class OneCycle(Schedule):
    """The learning rate rising linearly to its peak, then falling along half a cosine (Smith and Topin 2018)."""

    warmup: float = option(0.25, "share of the run over which the rate rises", at_least=0, at_most=1)
    start: float = option(0.04, "share of the peak rate at the first update", at_least=0, at_most=1)
    final: float = option(1e-3, "share of the peak rate at the last update", at_least=0, at_most=1)

    def build(self, updates: int) -> Callable[[int], float]:
        """Return the factor of each update."""
        from .schedules import onecycle

        return onecycle(updates, self.warmup, self.start, self.final)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in optimisers and schedules."""
    store.add("optim", "sgd", SGD)
    store.add("optim", "adamw", AdamW)
    store.add("optim", "adagrad", Adagrad)
    store.add("schedule", "constant", Constant)
    store.add("schedule", "step", Step)
    store.add("schedule", "cosine", Cosine)
    store.add("schedule", "onecycle", OneCycle)
