"""Checks an observer in real runs: it changes nothing, makes nobody wait, and survives what happens to runs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from engine.errors import UsageError
from engine.hookspecs import HOT, hookimpl
from engine.interfaces import Batch
from engine.options import Observer, SaveOptions
from engine.registry import bind, observers
from engine.run import Run
from engine.testing.promises import Promises
from engine.testing.reads import watch_reads
from engine.testing.small import small_run
from engine.testing.strategy import same_bits

INTERRUPTED = 7  # the step after which a run is interrupted: in its second epoch, after a save at step 6

HOOKS = "its hooks exist, take arguments that their specification has, and wrap nothing that is called every step"
ANEW = "build() makes a new object each time, because every run needs its own"
UNCHANGED = "an observer changes nothing of the mathematics"
WAITS = "what is called every step never reads device values"
STATE = "on_save_checkpoint puts JSON values into the state, which come back as they were"
SURVIVES = "it takes part in a whole run"
RESUMES = "it takes part in a run that was interrupted and resumed"
RAISES = "an exception of the run reaches the caller"


def check_observer(observer: Observer, *, changes_training: bool = False) -> None:
    """Check an observer's options in small real runs: two complete ones, and one that is interrupted and resumed.

    Promises: ``build`` works twice; its hooks exist with these arguments; on_batch, on_backward_end and
    on_step_end read no device value; the weights stay bit-equal to those of an unobserved run (not compared with
    ``changes_training``, for an observer whose documentation says that it changes the mathematics); its state is
    JSON; an exception reaches the caller. Raises BrokenPromise.
    """
    promises = Promises(observer)
    with promises.works("build() makes the observer"):
        one, other = observer.build(), observer.build()
    promises.expect(one is not other, ANEW, "it returned the same one twice")
    for built in (one, other):
        try:
            for hook in HOT:
                bind(observers({"checked": built}), hook)
        except UsageError as error:
            promises.expect(False, HOOKS, str(error))
    with TemporaryDirectory(prefix="engine-check-") as folder:
        _check_runs(promises, observer, Path(folder), changes_training)


def _check_runs(promises: Promises, observer: Observer, folder: Path, changes_training: bool) -> None:
    expected = _fit(promises, folder / "alone", {}, SURVIVES)
    for name in ("first", "second"):
        weights = _fit(promises, folder / name, {"checked": observer, "probe": _Probing(promises)}, SURVIVES)
        if not changes_training:
            promises.expect(same_bits(weights, expected), UNCHANGED, "the weights differ from an unobserved run's")
    interrupting = {"checked": observer, "probe": _Probing(promises, INTERRUPTED)}
    _fit(promises, folder / "interrupted", interrupting, RAISES)
    resuming = {"checked": observer, "probe": _Probing(promises)}
    weights = _fit(promises, folder / "interrupted", resuming, RESUMES, resume="auto")
    if not changes_training:
        promises.expect(same_bits(weights, expected), UNCHANGED, "the weights of a resumed run differ")


def _fit(
    promises: Promises, out: Path, watching: dict[str, Observer], promise: str, **settings: Any
) -> dict[str, Tensor]:
    """Return the weights after a small run; an interruption that was asked for ends it early."""
    interrupted = False
    with promises.works(promise):
        run = small_run(out, observe=watching, save=SaveOptions(every="6 steps"), **settings)
        _watch(promises, run)
        try:
            run.fit()
        except Interruption:
            interrupted = True
        finally:
            if run.lock:
                run.lock.close()
    asked = any(isinstance(options, _Probing) and options.interrupt_at for options in watching.values())
    promises.expect(interrupted == asked, RAISES, "it did not")
    return {name: value.clone() for name, value in run.model.state_dict().items()}


class Interruption(Exception):
    """What ends a run on purpose."""


@dataclass
class _Probing(Observer):
    """Stands behind the checked observer: looks at the state it saves, and ends a run on purpose."""

    promises: Any = None
    interrupt_at: int = 0

    def build(self) -> object:
        return _Probe(self.promises, self.interrupt_at)


class _Probe:
    def __init__(self, promises: Promises, interrupt_at: int) -> None:
        self.promises, self.interrupt_at = promises, interrupt_at

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        if run.position.step == self.interrupt_at:
            raise Interruption

    @hookimpl
    def on_save_checkpoint(self, state: dict[str, Any]) -> None:
        try:
            same = json.loads(json.dumps(state, allow_nan=False)) == state
        except (TypeError, ValueError) as error:
            self.promises.expect(False, STATE, str(error))
        else:
            self.promises.expect(same, STATE, f"{state} does not")


def _watch(promises: Promises, run: Run) -> None:
    """Put a watch on the run's hot hooks, which are bound when it starts."""
    for hook in HOT:
        for implementation in getattr(run.hooks, hook).get_hookimpls():
            if implementation.plugin_name == "checked":
                implementation.function = _watched(promises, hook, implementation.function)


def _watched(promises: Promises, hook: str, function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def call(*arguments: Any) -> None:
        host = [argument.samples for argument in arguments if isinstance(argument, Batch)]
        watching: AbstractContextManager[list[str]] = watch_reads(*host)
        with watching as reads:
            function(*arguments)
        promises.expect(not reads, WAITS, f"{hook} calls {', '.join(dict.fromkeys(reads))}; read numbers in on_log")

    return call
