"""WebDataset's tar shards: an image and its label under one name with different endings.

The order of training is the engine's, so that a resume is exact; random access needs to know where each image is,
which the shards' headers tell. They are read when a split is opened, of the content only the labels are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from engine import UsageError
from engine.interfaces import Records, Source

from .labelled import as_numbers, check_targets, fingerprint, numbered, shape_of
from .ranges import Files, LocalFiles
from .remote import RemoteFiles, RemoteFolder
from .splits import LocalFolder, names_of, shards_of
from .tar import Member, members

IMAGES = ("jpg", "jpeg", "png")
LABELS = ("cls", "txt", "json")
KEY = re.compile(
    r"((?:.*/|)[^./][^./]*)\.([^/]+)"
)  # WebDataset's: up to the first dot of the file's name, and the rest
WINDOW = {False: 4096, True: 1 << 20}  # bytes read at a time for headers, here and at an address
THREADS = 8


@dataclass
class Shards:
    """What the images of some shards are called, where they are [n, 3] and their labels: numbers, or names."""

    files: Files
    keys: list[str] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)

    def name_of(self, index: int) -> str:
        """Return a record's shard and name in it."""
        return f"{self.files.name(self.places[index][0])}: {self.keys[index]}"


class TarShards(Source):
    """Gives image files out of tar archives; safe to ask from threads and processes.

    The fingerprint covers the images' names, labels, lengths and content, as ``labelled.fingerprint`` says.
    """

    def __init__(
        self, shards: Shards, targets: np.ndarray, classes: Sequence[str], shape: tuple[int, int, int]
    ) -> None:
        self.classes, self.shape = tuple(classes), shape
        self._shards, self._targets = shards, torch.from_numpy(targets)
        self._places = np.array(shards.places, np.int64)
        facts = ("\0".join(shards.keys), self.classes, targets, self._places[:, 2])
        self.fingerprint = fingerprint(facts, len(self), int(self._places[:, 2].sum()), self._read)

    def __len__(self) -> int:
        return len(self._targets)

    def records(self, indices: Sequence[int]) -> Records:
        """Return the files at ``indices``; raises UsageError naming a shard that was changed or is unreachable."""
        return Records("encoded", self._read(indices), self._targets[torch.as_tensor(indices, dtype=torch.int64)])

    def name_of(self, index: int) -> str:
        """Return a record's shard and name in it."""
        return self._shards.name_of(index)

    def _read(self, indices: Sequence[int]) -> list[bytes]:
        rows = self._places[np.asarray(indices, np.int64)].tolist()
        return self._shards.files.read((file, offset, length) for file, offset, length in rows)


def open_webdataset(
    root: str,
    split: str,
    train: str,
    test: str | None,
    label: str,
    classes: int | None,
    size: int | None,
    channels: int,
) -> TarShards:
    """Return a split, its shards' headers and labels read.

    Raises UsageError naming a shard that is missing, truncated, damaged or without labels, and the record that has no
    image, no label, a bad one, or a name that another one has.
    """
    shape = shape_of(size, channels)
    remote = RemoteFolder(root, "webdataset") if "://" in root else None
    folder = remote or LocalFolder(root)

    def shards(split: str) -> Shards:
        paths = shards_of(folder, split, names_of(split, train, test), (".tar",))
        files = RemoteFiles(remote, paths) if remote else LocalFiles([Path(folder.root, path) for path in paths])
        return _indexed(files, label, remote is not None)

    found = shards(split)
    trained = found if split == "train" or (classes and _are_numbers(found)) else shards("train")
    targets, names = _targets(found, trained, classes)
    check_targets(targets, len(names), found.name_of)
    return TarShards(found, targets, names, shape)


def _are_numbers(shards: Shards) -> bool:
    return all(isinstance(label, int) for label in shards.labels)


def _targets(shards: Shards, trained: Shards, classes: int | None) -> tuple[np.ndarray, list[str]]:
    """Return labels as numbers, and the classes' names: numbers, or the names in use in order."""
    if _are_numbers(trained):
        for index, label in enumerate(shards.labels):
            if isinstance(label, str):
                raise UsageError(
                    f"{shards.name_of(index)} has the label '{label}', but others are numbers: use one kind"
                )
        numbers = as_numbers(shards.labels, shards.name_of)
        return numbers, numbered(classes, lambda: max(0, max(map(int, trained.labels))), trained.name_of(0))
    for index, label in enumerate(trained.labels):
        if isinstance(label, int):
            raise UsageError(f"{trained.name_of(index)} has the label {label}, but others are names: use one kind")
    names = sorted({str(label) for label in trained.labels})
    number = {name: place for place, name in enumerate(names)}
    for index, label in enumerate(shards.labels):
        if label not in number:
            raise UsageError(f"{shards.name_of(index)} has the label '{label}', which no training record has")
    return np.array([number[str(label)] for label in shards.labels], np.int64), names


def _indexed(files: Files, label: str, remote: bool) -> Shards:
    shards = Shards(files)
    with ThreadPoolExecutor(THREADS) as pool:
        for keys, places, labels in pool.map(partial(_shard, files, label, remote), range(len(files.lengths))):
            shards.keys += keys
            shards.places += places
            shards.labels += labels
    return shards


def _shard(files: Files, label: str, remote: bool, number: int) -> tuple[list, list, list]:
    """Return names, places and labels of a shard's images, in the order of the archive."""
    archive, length = files.name(number), files.lengths[number]
    window = _Window(files, number, WINDOW[remote])
    images: dict[str, tuple[int, int, int]] = {}
    labels: dict[str, int | str] = {}
    contents: dict[str, Member] = {}
    for member in members(window.read, length, archive):
        if member.link is None:
            contents[member.name] = member
        match = KEY.fullmatch(member.name)
        if match is None:
            continue
        key, ending = match[1], match[2].lower()
        if ending not in IMAGES and ending not in LABELS:
            continue
        found = member if member.link is None else contents.get(member.link)
        if found is None:
            raise UsageError(
                f"{archive}: {member.name} is a hard link to {member.link}, which is not before it in the shard; write "
                "the file itself"
            )
        if member.link is not None:
            contents[member.name] = found
        if key in (images if ending in IMAGES else labels):
            kind = "image" if ending in IMAGES else "label"
            raise UsageError(f"{archive}: {key} has more than one {kind}; write each record under a name of its own")
        if ending in IMAGES:
            images[key] = (number, found.offset, found.length)
        else:
            labels[key] = _label(window.read(found.offset, found.length), ending, label, f"{archive}: {member.name}")
    _require_pairs(archive, images, labels)
    return list(images), list(images.values()), [labels[key] for key in images]


def _require_pairs(archive: str, images: dict, labels: dict) -> None:
    endings = [", ".join(f".{ending}" for ending in some) for some in (IMAGES, LABELS)]
    if not images:
        raise UsageError(
            f"{archive} has no images ({endings[0]}); give data.train and data.test the shards with images"
        )
    if not labels:
        raise UsageError(f"{archive} has no labels ({endings[1]}); write one beside each image")
    for key in images:
        if key not in labels:
            raise UsageError(f"{archive}: {key} has no label ({endings[1]}); write one beside each image")
    for key in labels:
        if key not in images:
            raise UsageError(f"{archive}: {key} has no image ({endings[0]}); leave such records out")


def _label(data: bytes, ending: str, key: str, name: str) -> int | str:
    """Return a label: the whole number in a file, else its text, or what a JSON file has under ``key``."""
    try:
        text = data.decode("utf-8").strip()
        found = json.loads(text) if ending == "json" else text
    except ValueError as error:
        raise UsageError(f"{name} is no text{' of JSON' * (ending == 'json')}; write it again") from error
    if isinstance(found, dict):
        if key not in found:
            raise UsageError(f"{name} has no '{key}', but {', '.join(map(str, found)) or 'nothing'}; set data.label")
        found = found[key]
    if isinstance(found, str) and re.fullmatch(r"[+-]?\d+", found):
        return int(found)
    if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
        raise UsageError(f"{name} holds no whole number or name: {str(found)[:40]!r}")
    if ending == "cls" and isinstance(found, str):
        raise UsageError(f"{name} holds no whole number: {found[:40]!r}; names belong in .txt files")
    return found


class _Window:
    """Reads a file a window at a time, for requests that are near each other."""

    def __init__(self, files: Files, number: int, size: int) -> None:
        self._files, self._number, self._size = files, number, size
        self._start, self._data = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on, which are in the file."""
        if not self._start <= offset <= offset + length <= self._start + len(self._data):
            size = min(max(length, self._size), self._files.lengths[self._number] - offset)
            (self._data,), self._start = self._files.read([(self._number, offset, size)]), offset
        return self._data[offset - self._start : offset - self._start + length]
