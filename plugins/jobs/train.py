"""``engine train``: assemble, fit, say how it ended."""

from __future__ import annotations

import sys

from engine import Session, assemble
from engine.errors import Stopped
from engine.signals import StopRequests


def train(session: Session) -> None:
    """Train the composed run to its end, in as many processes as ``parallel`` says.

    Raises Stopped (exit code 75) if a signal or max_time ended it earlier.
    """
    session.options.parallel.perform(session, train_here)


def train_here(session: Session) -> None:
    """Train in this process, which may be one of several that are joined."""
    with StopRequests() as stop:  # opening the data may take long
        run = assemble(session, tell=lambda text: print(f"engine: {text}", file=sys.stderr))
    if stop.requested:
        raise Stopped(f"stopped by {stop.requested} before the first step: nothing was lost; run it again")
    outcome = run.fit()
    if "progress" not in session.options.observe and run.strategy.leads:  # somebody should say where it all is
        print(f"{outcome} after step {run.position.step} of {run.steps}; run folder {session.out}", file=sys.stderr)
    if outcome == "max_time" or outcome.startswith("stopped by"):
        reason = f"stopped by run.max_time={session.options.run.max_time}" if outcome == "max_time" else outcome
        raise Stopped(
            f"{reason} after step {run.position.step} of {run.steps}; checkpoint saved; "
            f"engine train resume={session.out} goes on"
        )
