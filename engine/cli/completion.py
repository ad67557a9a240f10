"""Answers Tab: jobs, choices of every plugin, fields of what is already chosen, and their values; no Hydra.

The script that a shell installs is Hydra's; it asks ``engine -sc query=bash`` with the line in COMP_LINE.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from glob import escape, glob

from engine.cli import arguments, schema
from engine.cli.presets import EXPERIMENT, Presets, picks_of
from engine.errors import UsageError
from engine.options import GROUPS, default_of
from engine.registry import Registry

SHELLS = ("bash", "zsh", "fish")


def answer(words: Sequence[str], registry: Registry, presets: Presets) -> None:
    """Print what ``-sc install=SHELL``, ``uninstall=SHELL`` or ``query=SHELL`` asks for.

    Raises UsageError for anything else.
    """
    action, _, shell = words[0].partition("=") if len(words) == 1 else ("", "", "")
    if action not in ("install", "uninstall", "query") or shell not in SHELLS:
        raise UsageError("-sc takes one of install=SHELL, uninstall=SHELL, query=SHELL; SHELL is bash, zsh or fish")
    if action != "query":
        _script(action, shell)
        return
    found = candidates(os.environ.get("COMP_LINE", ""), registry, presets)
    print(("\n" if shell == "fish" else " ").join(found))


def _script(action: str, shell: str) -> None:
    """Let Hydra print its script, under the name by which this command was called."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_module("engine.conf", job_name="engine", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None  # initialize_config_module made it
        hydra.shell_completion(config_name=None, overrides=[f"{action}={shell}"])


def candidates(line: str, registry: Registry, presets: Presets) -> list[str]:
    """Return the words that could replace the last one of ``line``, sorted; none if nothing fits."""
    words = line.split()[1:]
    word = "" if line.endswith(" ") or not words else words.pop()
    if word.startswith("-"):
        return sorted(flag for names, _, _ in arguments.FLAGS for flag in names if flag.startswith(word))
    words = [earlier for earlier in words if not earlier.startswith("-")]
    jobs = _jobs(words, word, registry.names("job"))
    job, words = arguments.named_job(words, registry.names("job"))
    if jobs and job and job not in registry.names("job"):
        return sorted(jobs)  # "engine bench" is no command yet
    picks = picks_of([*arguments.own_choices(job, words, registry), *words] if job in registry.names("job") else words)
    known = schema.table(registry, presets.chosen(picks | {"job": [job]} if job else picks))
    known = {key.removeprefix("job."): setting for key, setting in known.items()}
    key, equals, value = word.partition("=")
    if equals:
        return [f"{key}={text}" for text in _values(key, value, known, registry, presets)]
    groups = [f"{group}=" for group in (*GROUPS, EXPERIMENT) if group != "job"]
    return sorted({*jobs, *_steps(known, word), *(group for group in groups if group.startswith(word))})


def _jobs(words: Sequence[str], word: str, jobs: Iterable[str]) -> set[str]:
    """Complete the next word of a job's name: "bench", and after it "kernels" or "machine"."""
    place = len(words)
    if place != len(arguments.bare_words(words)):
        return set()
    parts = [name.split("_") for name in jobs]
    return {p[place] for p in parts if p[:place] == list(words) and len(p) > place and p[place].startswith(word)}


def _steps(keys: Iterable[str], word: str) -> set[str]:
    """Extend ``word`` by one level: "optim." before "optim.lr="."""
    found = set()
    for key in keys:
        if key.startswith(word):
            dot = key.find(".", len(word))
            found.add(f"{key}=" if dot < 0 else key[: dot + 1])
    return found


def _values(key: str, value: str, known: dict[str, schema.Setting], registry: Registry, presets: Presets) -> list[str]:
    """Return completed values; within a list or a sweep, the last part is completed and what is there not repeated."""
    if key in GROUPS or key == EXPERIMENT:
        cut = max(value.rfind("["), value.rfind(",")) + 1
        taken = value[value.rfind("[") + 1 : cut].split(",")
        options = [] if value.endswith("]") else presets.options(key)
        return [value[:cut] + name for name in options if name.startswith(value[cut:]) and name not in taken]
    if key not in known:
        return []
    setting = known[key]
    default = default_of(setting.field)
    usual = setting.choices or (("false", "true") if setting.type is bool else (schema.shown(default),))
    # The shell splits the answer at blanks, so a value that holds one cannot be offered.
    found = [text for text in usual if text.startswith(value) and text not in ("", "''", "???") and " " not in text]
    if not found and setting.type is str:
        found = [path + "/" * os.path.isdir(path) for path in sorted(glob(f"{escape(value)}*")) if " " not in path]
    return found
