"""Checks overrides before Hydra composes, because Hydra's own answers mislead or never come.

Hydra advises to add a mistyped key with "+", force-adds keys to typed options (which then vanish), merges two
components of a group that takes one, and names no alternatives for a member of a list. Every complaint here
names the option that was probably meant, also inside sweeps, before the first job of a sweep starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException

from engine.cli import schema
from engine.cli.presets import EXPERIMENT, Presets, picks_of
from engine.errors import UsageError, did_you_mean
from engine.options import GROUPS
from engine.registry import Registry

OURS = {
    "hydra.run.dir": "the run's folder is out=FOLDER",
    "hydra.sweep.dir": "the sweep's folder is out=FOLDER",
    "hydra.mode": "a sweep is started with -m",
    "hydra.searchpath": "a folder with your own presets is given with --config-dir",
    "hydra.output_subdir": "the engine writes config.yaml into the run's folder itself",
    "hydra.job.chdir": "the engine never changes the working directory",
}
ONCE = ("job", "out", "resume")  # they decide about the whole command, so they cannot be swept
IMPLIED = "run.steps=null"  # by a typed run.epochs, which the steps of an experiment would make void


def parse(words: Sequence[str]) -> list[Override]:
    """Return Hydra's reading of each override. Raises UsageError for one that it cannot read."""
    parser = OverridesParser.create()
    parsed = []
    for word in words:
        try:
            parsed += parser.parse_overrides([word])
        except HydraException as error:
            reason = str(error.__cause__ or error.__context__ or error).partition("\n")[0]
            quoting = "quote text that holds blanks or signs: key=\"'...'\""
            raise UsageError(f"{word}: cannot be read ({reason}); {quoting}") from error
    return parsed


def with_implied(words: Sequence[str]) -> list[str]:
    """Return ``words`` so that ``run.epochs`` among them decides the length even if the experiment gives steps."""
    keys = {key_of(word) for word in words}
    return [*words, IMPLIED] if {"run.epochs", EXPERIMENT} <= keys and "run.steps" not in keys else list(words)


def without_implied(words: Sequence[str]) -> list[str]:
    """Return ``words`` as they were before ``with_implied``."""
    typed = any(key_of(word) == "run.epochs" for word in words)
    return [word for word in words if not (typed and word == IMPLIED)]


def key_of(word: str) -> str:
    """Return the key of an override, or its group."""
    return word.partition("=")[0].lstrip("+~")


class Rules:
    """What the overrides of one command may be; nothing is composed yet."""

    def __init__(self, words: Sequence[str], job: str, registry: Registry, presets: Presets) -> None:
        self._registry, self._presets, self._job = registry, presets, job
        self._chosen = presets.chosen({**picks_of(words), "job": [job]})
        self._known = schema.table(registry, self._chosen)
        self._seen: set[str] = set()

    def check(self, overrides: Sequence[Override], sweep: bool) -> None:
        """Raise UsageError for the first override that is not what it seems to be, or a default that is not there."""
        for override in overrides:
            key = override.key_or_group
            if override.is_hydra_override():
                if key in OURS:
                    raise UsageError(f"{key}: {OURS[key]}")
                continue
            self._check_form(override, key, sweep)
            if key in GROUPS or key == EXPERIMENT:
                self._check_choice(override, key)
            else:
                self._check_key(key)
                self._check_values(override, key)
        for group, names in self._presets.defaults().items():
            for name in names if group not in self._seen and group != "job" else ():
                self._presets.require(group, name)  # its plugin may be broken

    def _check_form(self, override: Override, key: str, sweep: bool) -> None:
        word = override.input_line
        if override.package is not None:
            raise UsageError(f"{word}: a component's place is fixed; write {key}=...")
        if override.is_delete():
            clue = f"; {key}=[] chooses none" if key in GROUPS and GROUPS[key].many else ""
            raise UsageError(f"{word}: nothing can be removed{clue}")
        if (override.is_add() or override.is_force_add()) and not self._below_open(key):
            raise UsageError(f"{word}: nothing can be added; to set what exists write {str(word).lstrip('+')}")
        if override.is_sweep_override() and not sweep:
            raise UsageError(f"{word}: several values make a sweep, add -m; a list is [a,b], text is quoted")
        if override.is_sweep_override() and key in ONCE:
            raise UsageError(f"{word}: {key} cannot be swept; give one value")

    def _check_choice(self, override: Override, group: str) -> None:
        if group in self._seen:
            raise UsageError(f"{group} is given twice; keep one of them")
        self._seen.add(group)
        for value in alternatives(override):
            many = group in GROUPS and GROUPS[group].many
            names = value if isinstance(value, list) else [value]
            if isinstance(value, list) and not many:
                raise UsageError(f"{override.input_line}: {group} takes one choice, not a list")
            if not all(isinstance(name, str) for name in names):
                form, option = ("[name,name]", "NAME.OPTION") if many else ("name", "OPTION")
                raise UsageError(f"{override.input_line}: expected {group}={form}; an option is {group}.{option}=value")
            for name in names:
                self._presets.require(group, name)
            members = list(self._presets.members(group, names)) if group in GROUPS else []
            for name in members:
                if members.count(name) > 1:
                    raise UsageError(f"{override.input_line}: {name} is named twice; each can be used once")

    def _check_key(self, key: str) -> None:
        inner = any(known.startswith(f"{key}.") for known in self._known)
        if key in self._known or inner or self._below_open(key):
            return
        raise UsageError(f"{key}: {self._absent_here(key) or f'no such option{self._meant(key)}'}")

    def _check_values(self, override: Override, key: str) -> None:
        below = [known for known in self._known if known.startswith(f"{key}.")]
        if below and not isinstance(override.value(), dict):
            raise UsageError(f"{override.input_line}: {key} has no value of its own; known: {', '.join(below)}")
        choices = self._known[key].choices if key in self._known else ()
        for value in alternatives(override) if choices else ():
            if isinstance(value, str) and value not in choices:
                raise UsageError(f"{key}={value}: no such choice{did_you_mean(value, choices)}")

    def _below_open(self, key: str) -> bool:
        return any(setting.open and key.startswith(f"{known}.") for known, setting in self._known.items())

    def _absent_here(self, key: str) -> str:
        """Explain an option that exists, but not in this command; empty if there is none of that name."""
        for group, name in self._registry.components:
            table = schema.component(self._registry, group, name)
            if group == "job" and f"job.{key}" in table:
                return f"an option of the job '{name}', not of '{self._job}'"
            if key in table:
                now = ",".join(self._chosen.get(group, []))
                if GROUPS[group].many:
                    return f"{name} is not in {group}=[{now}]; add it to the list"
                return f"an option of {group}={name}, but this command has {group}={now}"
        return ""

    def _meant(self, key: str) -> str:
        """Return a hint at the nearest key, by its whole or by its last part, or the keys beside it."""
        inner = [known.rpartition(".")[0] for known in self._known if "." in known]
        keys = dict.fromkeys([*(known.removeprefix("job.") for known in self._known), *GROUPS, EXPERIMENT, *inner])
        near = get_close_matches(key, keys, n=1, cutoff=0.7)
        if not near:
            leaves = {known.rpartition(".")[2]: known for known in reversed(keys)}
            near = [leaves[leaf] for leaf in get_close_matches(key.rpartition(".")[2], leaves, n=1, cutoff=0.7)]
        if near:
            return f"; did you mean '{near[0]}'?"
        head = key.partition(".")[0]
        beside = [known for known in self._known if known.startswith(f"{head}.")]
        if "." in key and head in GROUPS and not beside:
            return f"; {head}={','.join(self._chosen[head])} has none"
        return f"; known: {', '.join(beside)}" if beside else "; see engine --help"


def alternatives(override: Override) -> Iterator[Any]:
    """Yield an override's value, or each value of a sweep over choices; ranges and globs are Hydra's to check."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        yield from (_plain(item) for item in value.list)
    elif not override.is_sweep_override():
        yield value


def _plain(item: Any) -> Any:
    if isinstance(item, QuotedString):
        return item.text
    return [_plain(member) for member in item] if isinstance(item, list) else item
