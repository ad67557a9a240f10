"""Where the engine's host time goes within a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import engine.run
from engine.registry import Registry, bind

from . import Work, stage
from .ours import build_run

FIRST = "stop requests, the end"  # the section that every step begins with


class Stopwatches:
    """Adds up, for every step and section, the time spent in the functions it was asked to watch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []  # seconds by section

    def watch(self, section: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with its time counted in ``section``."""

        def watched(*values: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            result = function(*values, **named)
            spent = time.perf_counter() - begun
            if section == FIRST:
                self.steps.append({})
            now = self.steps[-1]
            now[section] = now.get(section, 0.0) + spent
            return result

        return watched

    def medians(self, skipped: int) -> dict[str, float]:
        """Return the median seconds of each section, in the order in which a step comes to them."""
        steps = self.steps[skipped:]
        return {section: statistics.median(step.get(section, 0.0) for step in steps) for section in steps[0]}


def sections(work: Work, registry: Registry) -> dict[str, float]:
    """Return median seconds per step of each part of the engine's bookkeeping, the watching itself (0.1 us) included.

    The median leaves out what happens once in fifty steps: the log.
    """
    watches = Stopwatches()
    with stage() as folder:
        run, _ = build_run(work, registry, Path(folder))
        for owner, method, section in (
            (run, "ending", FIRST),
            (run, "log_due", "what is due"),
            (run, "report", "what is due"),
            (run, "weight", "loss weight"),
            (run, "seed", "random seed"),
            (run.loss, "measure", "metrics: accuracy"),
            (run.metrics, "add", "metrics: sums"),
            (run.metrics, "settle", "metrics: sums"),
            (run.guard, "check", "guard"),
            (run.guard, "settle", "guard"),
            (run.rates, "advance", "learning rate"),
        ):
            setattr(owner, method, watches.watch(section, getattr(owner, method)))

        def bound(hooks: Any, hook: str) -> tuple[Any, ...]:
            return tuple(watches.watch("observers", tell) for tell in bind(hooks, hook))

        with patch.object(engine.run, "bind", bound):
            run.fit()
    return watches.medians(work.skipped)
