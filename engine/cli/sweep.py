"""Sweeps: every combination is checked before the first runs, and each is a run of its own."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict

from engine.cli import folders, mistakes, resume
from engine.cli.overrides import parse, without_implied
from engine.cli.presets import PRIMARY
from engine.cli.task import Task, options_of, words_of
from engine.errors import EXIT_CRASHED, EngineError, Stopped, UsageError
from engine.options import Options


class Sweep(Task):
    """One job of a sweep after the other: a failure is told at once and the rest runs; a stop ends it all.

    ``code`` is the exit code of the first failure.
    """

    sweep = True

    def __call__(self, config: DictConfig) -> None:
        """Do one job."""
        composed = HydraConfig.get()
        name = f"job {composed.job.num}"
        print(f"{name}: {_as_typed(words_of(composed.overrides.task))}", flush=True)
        try:
            self.perform(config)
        except EngineError as error:
            print(f"engine: {name}: {' '.join(str(error).split())}", file=sys.stderr)
            if isinstance(error, Stopped):
                raise SystemExit(error.exit_code) from error  # Hydra goes on after any Exception
            self.code = self.code or error.exit_code
        except Exception:  # a defect in one job must not hide the others
            traceback.print_exc()
            self.code = self.code or EXIT_CRASHED

    def _folder(self, options: Options, hydras: str) -> Path:
        return folders.usable(Path(hydras))


def sweep(hydra: Hydra, overrides: list[str], task: Task, keeps_output: bool) -> None:
    """Run every combination, after all were composed and checked."""
    combinations = _combinations(hydra, overrides)
    for number, words in enumerate(combinations):  # a mistake in the last one must show before the first has run
        try:
            _check(hydra, words, number)
        except mistakes.COMPOSING as error:
            raise UsageError(f"job {number} ({_as_typed(words)}): {mistakes.in_one_line(error)}") from error
        except UsageError as error:
            raise UsageError(f"job {number} ({_as_typed(words)}): {error}") from error
    if not keeps_output:
        with tempfile.TemporaryDirectory() as nowhere:  # Hydra insists on a folder for its sweep
            _launch(hydra, overrides, combinations, [f"hydra.sweep.dir={resume.quoted(nowhere)}"], task)
        return
    given = [str(override.value()) for override in parse(overrides) if override.key_or_group == "out"]
    out = folders.usable(Path(given[0])) if given else folders.fresh()
    _launch(hydra, overrides, combinations, [] if given else [f"out={resume.quoted(out)}"], task)
    print(f"compare the runs: tensorboard --logdir {out}")


def _check(hydra: Hydra, words: list[str], number: int) -> None:
    """Raise what a combination's options are refused with, before anything is built of them."""
    config = hydra.compose_config(PRIMARY, words, RunMode.RUN)
    with open_dict(config):
        config.hydra.job.num = number
        HydraConfig.instance().set_config(config)  # so that ${hydra:job.num} can be resolved
        del config["hydra"]
    options_of(config)


def _as_typed(words: Sequence[str]) -> str:
    """Return a combination's overrides without what all jobs have, and what was added to them."""
    return " ".join(word for word in without_implied(words) if not word.startswith(("job=", "out=")))


def _combinations(hydra: Hydra, overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job; none if another sweeper decides about its values while it runs."""
    parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(list(overrides))
    if any(override.key_or_group == "hydra/sweeper" for override in parsed):
        return []
    return BasicSweeper.split_arguments(parsed, None)[0]


def _launch(hydra: Hydra, overrides: list[str], combinations: list[list[str]], placed: list[str], task: Task) -> None:
    """Do what ``hydra.multirun`` does, but start from the first combination instead of from nothing swept.

    Hydra would compose the defaults with ``data.root=x`` of a sweep over ``data=idx,cifar10``, and fail.
    """
    start = combinations[0] if combinations else overrides
    config = hydra.compose_config(PRIMARY, [*start, *placed], RunMode.MULTIRUN)
    swept = [word for word in [*overrides, *placed] if not word.startswith("hydra")]
    config.hydra.overrides.task = swept
    callbacks = Callbacks(config)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    callbacks.on_multirun_start(config=config, config_name=PRIMARY)
    sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=task)
    sweeper.sweep(arguments=swept)
    callbacks.on_multirun_end(config=config, config_name=PRIMARY)
