"""Which files hold a split: one file or folder of a usual name, or shards by name, pattern or range."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from engine import UsageError

from .files import folder_at
from .folder import TEST_FOLDERS

WILD = re.compile(r"[*?\[]")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Listing(Protocol):
    """What the search for shards needs to know of a folder, here or elsewhere."""

    root: str

    def files(self, sub: str) -> list[str]:
        """Return the names of the files in a sub-folder ("" for the folder itself), sorted; none if it is absent."""
        ...


class LocalFolder:
    """A folder of this machine; raises UsageError if it is absent."""

    def __init__(self, root: str) -> None:
        self.root = str(folder_at(root))

    def files(self, sub: str) -> list[str]:
        """Return the names of the files in a sub-folder, sorted, those that begin with a dot left out."""
        folder = Path(self.root, sub)
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def names_of(split: str, train: str, test: str | None) -> tuple[str, ...]:
    """Return the names that a split may have: the one given, or for testing the usual ones."""
    if split == "train":
        return (train,)
    return TEST_FOLDERS if test is None else (test,)


def one_of(
    root: str, split: str, names: Sequence[str], endings: Sequence[str], usable: Callable[[Path], bool] = Path.exists
) -> Path:
    """Return the one ``usable`` path in ``root`` that is called as one of ``names`` with one of ``endings``.

    Raises UsageError if there is none, or more than one.
    """
    base = folder_at(root)
    found = [name + ending for name in names for ending in endings if usable(base / (name + ending))]
    if not found:
        wanted = " or ".join(names[0] + ending for ending in endings if ending) or names[0]
        raise UsageError(f"data.root={root} has no {wanted}; give the folder that holds it, or set data.{split}")
    if len(found) > 1:
        raise UsageError(f"data.root={root} has {' and '.join(found)}; set data.{split} to the one to use")
    return base / found[0]


def shards_of(
    listing: Listing, split: str, names: Sequence[str], endings: Sequence[str], also: Sequence[str] = ()
) -> list[str]:
    """Return the paths below a folder of the files that make up a split, in the order of their names.

    A name is a pattern (``a-{000..009}.tar``, ``a-*.tar``), a file, a sub-folder, or what files begin with, followed by
    no letter; those are looked for in the folder and in the sub-folders ``also``. Raises UsageError if there are none,
    or if several names have some.
    """
    found = {name: shards for name in names if (shards := _shards(listing, name, endings, also))}
    if not found:
        kinds = ", ".join(f"{name}*{ending}" for name in names[:1] for ending in endings)
        kinds = names[0] if len(names) == 1 and (WILD.search(names[0]) or "{" in names[0]) else kinds
        raise UsageError(f"data.root={listing.root} has no {kinds}; give the folder of the files, or set data.{split}")
    if len(found) > 1:
        raise UsageError(f"data.root={listing.root} has {' and '.join(found)}; set data.{split} to the one to use")
    (shards,) = found.values()
    return shards


def _shards(listing: Listing, name: str, endings: Sequence[str], also: Sequence[str]) -> list[str]:
    if WILD.search(name) or "{" in name:
        return [path for pattern in expanded(name) for path in _matching(listing, pattern)]
    folder, _, last = name.rpartition("/")
    if last in listing.files(folder):
        return [name]
    inside = [f"{name}/{file}" for file in listing.files(name) if file.lower().endswith(tuple(endings))]
    if inside:
        return inside
    beginning = re.compile(re.escape(last) + r"(?![A-Za-z])")
    for sub in (folder, *also):
        some = [f for f in listing.files(sub) if beginning.match(f) and f.lower().endswith(tuple(endings))]
        if some:
            return [f"{sub}/{file}" if sub else file for file in some]
    return []


def _matching(listing: Listing, pattern: str) -> list[str]:
    """Return the paths that a pattern without braces stands for; one without wildcards for itself, there or not."""
    if not WILD.search(pattern):
        return [pattern]
    folder, slash, last = pattern.rpartition("/")
    return [f"{folder}{slash}{file}" for file in listing.files(folder) if fnmatchcase(file, last)]


def expanded(pattern: str) -> Iterator[str]:
    """Yield what a pattern's braces stand for: ``{a,b}`` each of some words, ``{008..012}`` each number of a range.

    Numbers have as many digits as the first one. Raises UsageError for braces of another kind.
    """
    braces = BRACES.search(pattern)
    if braces is None:
        if "{" in pattern or "}" in pattern:
            raise UsageError(f"'{pattern}' has a brace without its fellow; write a range as in name-{{000..009}}.tar")
        yield pattern
        return
    for word in _words(pattern, braces[1]):
        yield from expanded(pattern[: braces.start()] + word + pattern[braces.end() :])


def _words(pattern: str, inside: str) -> list[str]:
    numbers = RANGE.fullmatch(inside)
    if numbers and int(numbers[1]) <= int(numbers[2]):
        return [str(n).zfill(len(numbers[1])) for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    if "," in inside:
        return inside.split(",")
    raise UsageError(f"'{pattern}' has {{{inside}}}, which is no range; write it as in name-{{000..009}}.tar")
