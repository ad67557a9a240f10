"""``engine --help``: everything that can be typed, from the registry and ``conf/`` alone, so that it is instant."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from engine.cli import arguments, schema
from engine.cli.presets import EXPERIMENT, Choices, Presets, picks_of
from engine.options import GROUPS, default_of
from engine.registry import Registry

USAGE = """\
Train ConvNets from components that plugins supply.

  engine JOB [key=value ...] [flags]       engine train model=lenet run.epochs=5
  engine JOB [choices] --help              the fields of the chosen components

A choice is group=name, or group=[name,name] where several are allowed; * marks the default.
A chosen component's field is group.field=value, or group.name.field=value where several are allowed."""
CLOSING = """\
Completion in bash:  eval "$(engine -sc install=bash)"
Where a value comes from:  engine explain [key=value ...]
How to write a plugin, and more:  README.md and docs/ of the project"""


def text(words: Sequence[str], registry: Registry, presets: Presets) -> str:
    """Return the help for a command line; with words on it, the fields of what they choose come last.

    Raises UsageError for an unknown job or choice.
    """
    sections = [USAGE]
    defaults = presets.defaults()
    sections.append(_section("jobs", _described(registry, "job", defaults.get("job", []))))
    for group, base in GROUPS.items():
        if group != "job":
            form = f"{group}=[...]" if base.many else f"{group}="
            rows = _described(registry, group, defaults.get(group, []))
            rows += [(f"  {name}", f"preset: {_summary(presets, group, name)}") for name in presets.names(group)]
            sections.append(_section(form, rows))
    experiments = [(f"  {name}", _summary(presets, EXPERIMENT, name)) for name in presets.names(EXPERIMENT)]
    sections.append(_section("experiment=", experiments))
    sections.append(_section("options", _options(schema.root())))
    sections.append(_section("flags", _flags()))
    broken = [(plugin.name, plugin.error) for plugin in registry.plugins if plugin.error]
    if broken:
        sections.append(_section("plugins that could not be loaded", broken))
    if words:
        sections += list(_fields(words, registry, presets))
    return "\n\n".join([*sections, CLOSING])


def _fields(words: Sequence[str], registry: Registry, presets: Presets) -> Iterator[str]:
    """Yield a section for each component that ``words`` choose (for the job alone, if they choose nothing)."""
    job, overrides = arguments.job_of(words, registry, presets.defaults()["job"][0])
    picks: Choices = {"job": [job], **picks_of(overrides)}
    for group, names in picks.items():
        for name in names if group != "job" else ():
            presets.require(group, name)
    chosen = presets.chosen(picks)
    groups = GROUPS if EXPERIMENT in picks else [group for group in GROUPS if group in picks]
    for group in groups:
        for name in chosen[group]:
            rows = _options(_short(group, schema.component(registry, group, name)))
            yield _section(f"{group}={name}", rows or [("(no fields)", "")])


def _short(group: str, table: Mapping[str, schema.Setting]) -> Mapping[str, schema.Setting]:
    """Drop the prefix of a job's fields, as they are given without it."""
    return {key.removeprefix("job."): setting for key, setting in table.items()} if group == "job" else table


def _described(registry: Registry, group: str, default: Sequence[str]) -> list[tuple[str, str]]:
    rows = []
    for name in registry.names(group):
        shown = arguments.typed(name) if group == "job" else name
        rows.append((f"{'*' if name in default else ' '} {shown}", registry.entry(group, name).summary))
    return rows


def _summary(presets: Presets, group: str, name: str) -> str:
    preset = presets.read(f"{group}/{name}")
    return preset.summary if preset else ""


def _options(table: Mapping[str, schema.Setting]) -> list[tuple[str, str]]:
    rows = []
    for key, setting in table.items():
        default = default_of(setting.field)
        value = "(required)" if default == dataclasses.MISSING or default == "???" else schema.shown(default)
        limits = f" [{', '.join(setting.choices)}]" if setting.choices else ""
        rows.append((f"{key}={value}", f"{setting.help}{limits}"))
    return rows


def _flags() -> list[tuple[str, str]]:
    rows = []
    for names, settings, help in arguments.FLAGS:
        value = settings.get("metavar") or "|".join(settings.get("choices", ()))
        rows.append((f"{', '.join(names)} {value}".strip(), help))
    return rows


def _section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:{width}}  {text}".rstrip() for name, text in rows)])
