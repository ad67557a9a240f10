"""Learning rate schedules: pure functions from an update's number to the factor of the peak rate.

``updates`` is the run's length; a factor is asked for updates 0 to ``updates`` - 1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import cos, pi

from engine import UsageError

Factor = Callable[[int], float]


def warmup_updates(updates: int, warmup: float) -> int:
    """Return how many updates a warm-up over the share ``warmup`` of the run takes."""
    return round(warmup * updates)


def warmed(factor: Factor, updates: int, warmup: float) -> Factor:
    """Return ``factor`` with its first W updates replaced by 1/W, 2/W ... 1 (Goyal et al. 2017), W from ``warmup``."""
    rising = warmup_updates(updates, warmup)
    return lambda update: (update + 1) / rising if update < rising else factor(update)


def constant(update: int) -> float:
    """Return 1."""
    return 1.0


def step(updates: int, milestones: Sequence[float], gamma: float) -> Factor:
    """Return gamma^(milestones passed); a milestone is a share of the run, rounded to the nearest update.

    Raises UsageError unless they ascend within 0 to 1.
    """
    if list(milestones) != sorted(set(milestones)) or any(not 0 <= share <= 1 for share in milestones):
        raise UsageError(
            f"schedule.milestones={list(milestones)}: must be shares of the run between 0 and 1, ascending, such as "
            "[0.5,0.75]"
        )
    places = [round(share * updates) for share in milestones]
    return lambda update: gamma ** bisect_right(places, update)


def cosine(first: int, updates: int, floor: float) -> Factor:
    """Return half a cosine from 1 at update ``first`` towards ``floor``, which update ``updates`` would reach.

    SGDR without restarts (Loshchilov and Hutter 2017, equation 5).
    """
    length = max(updates - first, 1)
    return lambda update: floor + (1 - floor) * (1 + cos(pi * (update - first) / length)) / 2


def onecycle(updates: int, warmup: float, start: float, final: float) -> Factor:
    """Return a line from ``start`` up to 1 over the share ``warmup``, then half a cosine down to ``final``.

    The last update has ``final`` exactly. Each phase is that of torch's OneCycleLR with the like annealing (there
    both phases have the same one), after Smith and Topin 2018, "Super-convergence".
    """
    peak = max(warmup * updates - 1, 0.0)  # where the line meets the cosine, perhaps between two updates
    falling = max(updates - 1 - peak, 1.0)

    def factor(update: int) -> float:
        if update < peak:
            return start + (1 - start) * update / peak
        return final + (1 - final) * (1 + cos(pi * (update - peak) / falling)) / 2

    return factor
