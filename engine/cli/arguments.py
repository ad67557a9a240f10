"""Takes a command line apart without Hydra: flags, the job's name, and the overrides as they were typed."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn

from engine.cli import schema
from engine.errors import UsageError
from engine.options import GROUPS
from engine.registry import Registry

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
FLAGS: tuple[tuple[tuple[str, ...], dict[str, Any], str], ...] = (
    (("-h", "--help"), {"action": "store_true"}, "this help; after a job and choices, their fields too"),
    (("-m", "--multirun"), {"action": "store_true"}, "sweep: one run for each combination of values a,b,c"),
    (("-c", "--cfg"), {"choices": ("job", "hydra", "all")}, "print the composed configuration instead of running"),
    (("-p", "--package"), {"metavar": "KEY"}, "with --cfg: print only this part of it"),
    (("--resolve",), {"action": "store_true"}, "with --cfg: resolve ${...} first"),
    (("-i", "--info"), {"nargs": "?", "const": "all", "choices": INFO}, "print how Hydra composed it"),
    (("-cd", "--config-dir"), {"metavar": "DIR"}, "a folder with your own presets and experiments"),
    (("-sc", "--shell-completion"), {"action": "store_true"}, "install=bash, uninstall=bash (also zsh, fish)"),
    (("--version",), {"action": "store_true"}, "print the engine's version"),
)
SHORT = re.compile(r"(\+{0,2}|~)([A-Za-z_]\w*)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command line taken apart: ``words`` are all arguments that are not flags, in order."""

    flags: argparse.Namespace
    words: list[str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see engine --help")


def parse(argv: Sequence[str]) -> Command:
    """Separate flags from words, wherever they stand. Raises UsageError for an unknown or contradictory flag."""
    parser = _Parser(prog="engine", add_help=False, allow_abbrev=False)
    for names, settings, _ in FLAGS:
        parser.add_argument(*names, **settings)
    parser.add_argument("words", nargs="*")
    flags, unknown = parser.parse_known_intermixed_args(list(argv))
    if unknown:
        raise UsageError(f"{unknown[0]}: no such flag{_meant(unknown[0])}")
    modes = [name for name in ("multirun", "cfg", "info", "shell_completion") if getattr(flags, name)]
    if len(modes) > 1:
        raise UsageError(f"--{modes[0]} and --{modes[1].replace('_', '-')} exclude each other: give one of them")
    if (flags.resolve or flags.package) and not flags.cfg:
        raise UsageError("--resolve and --package say how --cfg prints: add --cfg job")
    return Command(flags, flags.words)


def _meant(flag: str) -> str:
    """Point from a flag that does not exist to one that does, or to the option that was meant."""
    name = flag.lstrip("-").partition("=")[0].replace("-", "_")
    registry = Registry.load()
    keys = [*schema.root(), *GROUPS]
    keys += [key for group, choice in registry.components for key in schema.component(registry, group, choice)]
    meant = next((key for key in keys if key == name), None) or next((k for k in keys if k.endswith(f".{name}")), None)
    if meant:
        return f"; options are given without dashes: {meant.removeprefix('job.')}=..."
    near = get_close_matches(flag, [long for names, _, _ in FLAGS for long in names], n=1)
    return f"; did you mean '{near[0]}'?" if near else "; options are given without dashes (key=value)"


def job_of(words: Sequence[str], registry: Registry, default: str) -> tuple[str, list[str]]:
    """Return the job that ``words`` name, and the overrides with that job's short fields and own choices written out.

    ``evaluate checkpoint=x`` gives ("evaluate", ["job.checkpoint=x"]), ``bench machine`` ("bench_machine", []),
    ``verify`` ("verify", ["data=store"]).
    Raises UsageError for an unknown job, one named twice, or a word that is neither a job nor an override.
    """
    first, overrides = named_job(words, registry.names("job"))
    named = [word.partition("=")[2] for word in overrides if word.startswith("job=")]
    if first:
        _require_whole(first, words, registry.names("job"))
        named.insert(0, first)
    if len(named) > 1:
        raise UsageError(f"the job is given twice: {' and '.join(named)}")
    for word in overrides:
        if not looks_like_override(word):
            first = f"; a job comes first: engine {word} ..." if word in registry.names("job") else ""
            raise UsageError(f"'{word}' is not an override; write key=value{first}")
    job = named[0] if named else default
    options = registry.entry("job", job).options
    fields, several = {f.name for f in dataclasses.fields(options)}, getattr(options, "several", {})
    written = [_written_out(_listed(word, several), fields) for word in overrides if not word.startswith("job=")]
    return job, [*own_choices(job, overrides, registry), *written]


def own_choices(job: str, words: Sequence[str], registry: Registry) -> list[str]:
    """Return the choices that a job makes itself, as overrides, where ``words`` make none for the group."""
    chosen = {word.partition("=")[0] for word in words}
    chooses = getattr(registry.entry("job", job).options, "chooses", {})
    return [f"{group}={name}" for group, name in chooses.items() if group not in chosen]


def named_job(words: Sequence[str], jobs: Sequence[str]) -> tuple[str, list[str]]:
    """Return the job that the bare words at the start name ("" if there are none), and the rest of the words.

    A name with underscores may be typed as several words; the longest name that fits is meant. Where none fits, the
    first word is returned as the name.
    """
    bare = bare_words(words)
    for count in range(len(bare), 0, -1):
        if (name := "_".join(bare[:count])) in jobs:
            return name, list(words[count:])
    return (bare[0], list(words[1:])) if bare else ("", list(words))


def bare_words(words: Sequence[str]) -> list[str]:
    """Return the words before the first override."""
    return list(takewhile(lambda word: not looks_like_override(word), words))


def _require_whole(job: str, words: Sequence[str], jobs: Sequence[str]) -> None:
    """Raise UsageError if ``job`` is no job but the first word of some."""
    longer = [f"'{typed(name)}'" for name in jobs if name.startswith(f"{job}_")]
    if longer and job not in jobs:
        raise UsageError(f"'{' '.join(bare_words(words))}' is no job: write {' or '.join(longer)}")


def typed(job: str) -> str:
    """Return a job's name as it is typed: ``bench machine`` for bench_machine."""
    return job.replace("_", " ")


def looks_like_override(word: str) -> bool:
    """Say whether a word is meant as an override: it has a value, or it deletes something."""
    return "=" in word or word.startswith("~")


def _listed(word: str, several: Mapping[str, str]) -> str:
    """Return several choices of a group, a,b, as the list of the job's field that takes them (``Job.several``)."""
    group, _, value = word.partition("=")
    plain = "," in value and not re.search(r"[\[\](){}'\"]", value)
    return f"{several[group]}=[{value}]" if plain and group in several else word


def _written_out(word: str, job_fields: set[str]) -> str:
    match = SHORT.fullmatch(word)
    return f"{match[1]}job.{match[2]}{match[3]}" if match and match[2] in job_fields else word
