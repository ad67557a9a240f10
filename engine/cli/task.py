"""From a composed configuration to a job's work: the options checked, the folder made, the Session handed over."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from engine.cli import folders, mistakes, origins, resume
from engine.cli.presets import Presets
from engine.distributed.place import place_of
from engine.errors import UsageError
from engine.memory import arrange
from engine.options import GROUPS, Options, check
from engine.registry import Registry
from engine.session import Session


def options_of(config: DictConfig) -> Options:
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


def words_of(overrides: Any) -> list[str]:
    """Return Hydra's list of overrides as they were typed: iterating over it would resolve ``${...}``."""
    words: Any = OmegaConf.to_container(overrides, resolve=False)
    return list(words)


class Task:
    """What Hydra calls with the composed configuration; a failure is kept, as Hydra would print over it."""

    sweep = False

    def __init__(self, registry: Registry, presets: Presets) -> None:
        self._registry, self._presets = registry, presets
        self.failure: Exception | None = None
        self.code = 0

    def __call__(self, config: DictConfig) -> None:
        """Do the job."""
        try:
            self.perform(config)
        except Exception as error:  # raised again once Hydra has returned
            self.failure = error

    def perform(self, config: DictConfig) -> None:
        """Turn the configuration into a Session and do its job in the run's folder."""
        composed = HydraConfig.get()
        options = options_of(config)
        new = not (options.out and Path(options.out).exists())
        overrides = words_of(composed.overrides.task)
        if options.job.keeps_output:
            config.out = str(self._folder(options, composed.runtime.output_dir))
            if options.resume == "auto" and self.sweep:
                config.resume = resume.newest_in(Path(config.out), resume.task(overrides))
            options = options_of(config)
        everything = [*words_of(composed.overrides.hydra), *overrides]
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
        arrange(options.run)
        try:
            options.job.build()(session)
        except UsageError:
            if options.job.keeps_output and new:
                folders.discard_empty(session.out)
            raise

    def _choices(self, options: Options, chosen: Mapping[str, str]) -> dict[str, Any]:
        """Return each group's component, or list of components, with presets resolved."""
        return {
            group: list(getattr(options, group)) if base.many else [*self._presets.members(group, [chosen[group]])][-1]
            for group, base in GROUPS.items()
        }

    def _folder(self, options: Options, hydras: str) -> Path:
        if not options.out and (world := place_of(os.environ).world) > 1:  # each would make one of its own
            raise UsageError(f"{world} processes were started for one run: name its folder, the same to all, with out=")
        return (folders.usable(Path(options.out)) if options.out else folders.fresh()).absolute()
