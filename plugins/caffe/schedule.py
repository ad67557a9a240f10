"""Caffe's learning rate policies: factors of base_lr by the iteration (SGDSolver::GetLearningRate)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from math import exp
from typing import TYPE_CHECKING

from engine import UsageError

if TYPE_CHECKING:
    from . import CaffeSchedule


def factor(options: CaffeSchedule, updates: int) -> Callable[[int], float]:
    """Return the factor of each update. Raises UsageError for what the policy needs and lacks."""
    policy, gamma, power = options.policy, options.gamma, options.power
    if policy == "step":
        if options.stepsize < 1:
            raise UsageError("schedule.stepsize=0: policy=step needs the steps between two drops")
        return lambda update: float(gamma ** (update // options.stepsize))
    if policy == "multistep":
        values = list(options.stepvalues)
        if values != sorted(values):
            raise UsageError(f"schedule.stepvalues={values}: must ascend")
        return lambda update: float(gamma ** bisect_right(values, update))
    if policy == "exp":
        return lambda update: float(gamma**update)
    if policy == "inv":
        return lambda update: float((1 + gamma * update) ** -power)
    if policy == "poly":
        length = options.max_iter or updates
        return lambda update: float(max(0.0, 1 - update / length) ** power)
    if policy == "sigmoid":
        return lambda update: _sigmoid(-gamma * (update - options.stepsize))
    return lambda update: 1.0


def _sigmoid(exponent: float) -> float:
    return 1 / (1 + exp(exponent)) if exponent < 700 else 0.0
