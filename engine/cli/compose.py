"""Has Hydra compose the options, once or for each job of a sweep, and hands them to the job as a Session."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from engine.cli import folders, guard, mistakes, origins, resume
from engine.cli.arguments import Command, job_of
from engine.cli.presets import PRIMARY, Presets
from engine.errors import EXIT_CRASHED, EngineError, Stopped, UsageError
from engine.options import GROUPS, Options, check
from engine.registry import Registry
from engine.session import Session


def carry_out(command: Command, registry: Registry, presets: Presets) -> int:
    """Check, compose and do what a command says; return its exit code. Raises EngineError where it fails."""
    flags = command.flags
    job, words = job_of(command.words, registry, presets.defaults()["job"][0])
    guard.Guard(words, job, registry, presets).check(guard.parse(words), flags.multirun)
    overrides = [f"job={job}", *resume.restored(words, job, registry, flags.multirun)]
    store(registry)
    with _hydra(flags.config_dir) as hydra:
        if flags.cfg:
            _show(hydra, overrides, flags.cfg, flags.package, flags.resolve)
        elif flags.info:
            hydra.show_info(flags.info, PRIMARY, overrides)
        elif flags.multirun:
            return _sweep(hydra, overrides, Sweep(registry, presets), registry.entry("job", job).options.keeps_output)
        else:
            task = Single(registry, presets)
            hydra.run(PRIMARY, task, overrides)
            if task.failure:
                raise task.failure
    return 0


def store(registry: Registry) -> None:
    """Give Hydra every registered dataclass as the schema and the defaults of its choice."""
    configs = ConfigStore.instance()
    configs.store(name="options", node=Options, provider="engine")
    for (group, name), entry in registry.components.items():
        package = f"{group}.{name}" if GROUPS[group].many else group
        configs.store(group=group, name=name, node=entry.options, package=package, provider=entry.plugin)


@contextmanager
def _hydra(config_dir: str | None) -> Iterator[Hydra]:
    """Yield Hydra set up on ``engine.conf``, whatever the working directory holds; its complaints are UsageErrors."""
    with initialize_config_module("engine.conf", job_name="engine", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None  # initialize_config_module made it
        if config_dir is not None:
            path = hydra.config_loader.get_search_path()
            path.prepend("config-dir", f"file://{Path(config_dir).resolve()}", SearchPathQuery(provider="schema"))
            hydra.config_loader.repository.initialize_sources(path)  # type: ignore[attr-defined]
        try:
            yield hydra
        except mistakes.COMPOSING as error:
            raise UsageError(mistakes.in_one_line(error)) from error


def _show(hydra: Hydra, overrides: list[str], kind: str, package: str | None, resolve: bool) -> None:
    config = hydra.compose_config(PRIMARY, overrides, RunMode.RUN)
    if package and package != "_global_" and OmegaConf.select(config, package) is None:
        raise UsageError(f"--package {package}: the configuration has no such part; give a key such as model or run")
    hydra.show_cfg(PRIMARY, overrides, kind, package, resolve)


def _sweep(hydra: Hydra, overrides: list[str], task: Sweep, keeps_output: bool) -> int:
    """Run every combination, after all were composed and checked; return the exit code of the first failure."""
    _check_each(hydra, overrides)
    if not keeps_output:
        with tempfile.TemporaryDirectory() as nowhere:  # Hydra insists on a folder for its sweep
            hydra.multirun(PRIMARY, task, [*overrides, f"hydra.sweep.dir={resume.quoted(nowhere)}"])
        return task.code
    given = [str(o.value()) for o in guard.parse(overrides) if o.key_or_group == "out"]
    out = folders.usable(Path(given[0])) if given else folders.fresh()
    hydra.multirun(PRIMARY, task, overrides if given else [*overrides, f"out={resume.quoted(out)}"])
    print(f"compare the runs: tensorboard --logdir {out}")
    return task.code


def _check_each(hydra: Hydra, overrides: Sequence[str]) -> None:
    """Compose and check each combination of a sweep, so that a mistake in the last one stops it before the first."""
    parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(list(overrides))
    if any(o.key_or_group == "hydra/sweeper" for o in parsed):
        return  # another sweeper decides about its values while it runs
    for words in BasicSweeper.split_arguments(parsed, None)[0]:
        config = hydra.compose_config(PRIMARY, words, RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
        _options(config)


def _options(config: DictConfig) -> Options:
    """Return the composed options as the plugins' own dataclasses. Raises UsageError for what is missing or wrong."""
    try:
        missing = OmegaConf.missing_keys(config)
        if missing:
            raise UsageError(_ask_for(config, min(missing)))
        options = OmegaConf.to_object(config)
    except mistakes.COMPOSING as error:
        raise UsageError(mistakes.in_one_line(error)) from error
    assert isinstance(options, Options)
    check(options)
    return options


def _ask_for(config: DictConfig, key: str) -> str:
    above, _, name = key.rpartition(".")
    owner: Any = OmegaConf.get_type(config, above) if above else Options
    helps = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(owner)}
    typed = key.removeprefix("job.")
    return f"{typed} must be given ({helps[name]}): add {typed}=... to the command"


class Single:
    """What Hydra calls with the composed configuration; the failure is kept, as Hydra would print over it."""

    sweep = False

    def __init__(self, registry: Registry, presets: Presets) -> None:
        self._registry, self._presets = registry, presets
        self.failure: Exception | None = None

    def __call__(self, config: DictConfig) -> None:
        """Do the job."""
        try:
            self.perform(config)
        except Exception as error:  # raised again once Hydra has returned
            self.failure = error

    def perform(self, config: DictConfig) -> None:
        """Turn the configuration into a Session and do its job in the run's folder."""
        composed = HydraConfig.get()
        options = _options(config)
        overrides = list(composed.overrides.task)
        if options.job.keeps_output:
            config.out = str(self._folder(options, composed.runtime.output_dir))
            if options.resume == "auto":
                config.resume = resume.newest_in(Path(config.out), resume.task(overrides))
            options = _options(config)
        everything = [*composed.overrides.hydra, *overrides]
        loader, defaults = GlobalHydra.instance().config_loader(), self._presets.defaults()
        session = Session(
            options=options,
            registry=self._registry,
            out=Path(options.out).absolute(),
            overrides=resume.task(overrides),
            choices=self._choices(options, composed.runtime.choices),
            config=OmegaConf.to_yaml(config),
            origins=lambda: origins.trace(loader, everything, config, defaults),
            sweep=self.sweep,
        )
        options.job.build()(session)

    def _choices(self, options: Options, chosen: Mapping[str, str]) -> dict[str, Any]:
        """Return each group's component, or list of components, with presets resolved."""
        return {
            group: list(getattr(options, group)) if base.many else [*self._presets.members(group, [chosen[group]])][-1]
            for group, base in GROUPS.items()
        }

    def _folder(self, options: Options, hydras: str) -> Path:
        return (folders.usable(Path(options.out)) if options.out else folders.fresh()).absolute()


class Sweep(Single):
    """One job of a sweep after the other: a failure is told at once and the rest runs; a stop ends it all."""

    sweep = True

    def __init__(self, registry: Registry, presets: Presets) -> None:
        super().__init__(registry, presets)
        self.code = 0

    def __call__(self, config: DictConfig) -> None:
        """Do one job."""
        composed = HydraConfig.get()
        name = f"job {composed.job.num}"
        print(f"{name}: {' '.join(resume.task(composed.overrides.task))}", flush=True)
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
