"""Has Hydra compose what a command says, once or for each job of a sweep, or print how it would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_module
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from engine.cli import mistakes, resume
from engine.cli.arguments import Command, job_of
from engine.cli.overrides import Rules, parse, with_implied
from engine.cli.presets import PRIMARY, Presets
from engine.cli.sweep import Sweep, sweep
from engine.cli.task import Task
from engine.errors import UsageError
from engine.options import GROUPS, Options
from engine.registry import Registry


def carry_out(command: Command, registry: Registry, presets: Presets) -> int:
    """Check, compose and do what a command says; return its exit code. Raises EngineError where it fails."""
    flags = command.flags
    job, typed = job_of(command.words, registry, presets.defaults()["job"][0])
    words = resume.restored(typed, job, registry, flags.multirun)
    Rules(words, job, registry, presets).check(parse(words), flags.multirun)
    overrides = [f"job={job}", *with_implied(words)]
    store(registry)
    task = Sweep(registry, presets) if flags.multirun else Task(registry, presets)
    with _hydra(flags.config_dir) as hydra:
        if flags.cfg:
            _show(hydra, overrides, flags.cfg, flags.package, flags.resolve)
        elif flags.info:
            hydra.show_info(flags.info, PRIMARY, overrides)
        elif flags.multirun:
            sweep(hydra, overrides, task, resume.keeps_output(job, registry))
        else:
            hydra.run(PRIMARY, task, overrides)
    if isinstance(task.failure, UsageError):
        raise UsageError(f"{task.failure}{resume.moved(words, typed)}") from task.failure
    if task.failure:
        raise task.failure
    return task.code


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
