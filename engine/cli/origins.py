"""Where each value of a composed configuration comes from: the defaults list in merge order, the last writer wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from engine.cli.presets import EXPERIMENT, PRIMARY, Choices
from engine.cli.schema import shown
from engine.options import GROUPS
from engine.session import Origin

OVERRIDE = "override"


def trace(loader: ConfigLoader, overrides: Sequence[str], config: DictConfig, defaults: Choices) -> list[Origin]:
    """Return the origin of every choice and every value of ``config``, in its order.

    ``overrides`` are those that composed it, ``defaults`` the default choices. The choices come first, then
    each option by its dotted key.
    """
    composed = loader.compute_defaults_list(PRIMARY, list(overrides), RunMode.RUN)
    writers: dict[str, str] = {}
    for default in composed.defaults:
        loaded = _load(loader, default.config_path)
        package = loaded.header["package"] if default.package is None else default.package
        if not package.startswith("hydra"):
            written_by = _writer(default.config_path, loaded)
            content = OmegaConf.to_container(loaded.config, resolve=False)
            writers |= {key: written_by for key, _ in _flat(content, package)}
    for override in composed.config_overrides:
        writers |= {key: OVERRIDE for key, _ in _flat(override.value(), override.key_or_group)}
    choices = []
    for group in (*GROUPS, EXPERIMENT):
        changed = composed.overrides.override_metadata.get(group)
        if changed is None and group in defaults:
            names = defaults[group]
            choice = names if GROUPS[group].many else names[0]
            choices.append(Origin(group, shown(choice), f"default (conf/{PRIMARY}.yaml)"))
        elif changed is not None:
            path = changed.containing_config_path
            source = OVERRIDE if changed.external_override else _writer(path, _load(loader, path))
            choices.append(Origin(group, shown(composed.overrides.override_choices[group]), source))
    values = _flat(OmegaConf.to_container(config, resolve=False), "")
    return [*choices, *(Origin(key, shown(value), writers.get(key, OVERRIDE)) for key, value in values)]


def _load(loader: ConfigLoader, path: str) -> Any:
    return loader.repository.load_config(path)  # type: ignore[attr-defined]


def _writer(path: str, loaded: Any) -> str:
    """Name the plugin whose dataclass, or the file that, gives a value."""
    if loaded.path.startswith("structured:"):
        return "default (engine)" if loaded.provider == "engine" else f"default (plugin {loaded.provider})"
    folder = loaded.path.replace("pkg://engine.conf", "conf").removeprefix("file://")
    return f"preset {folder}/{path}.yaml"


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf; an empty dict has none, a list is one."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
