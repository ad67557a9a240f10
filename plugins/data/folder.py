"""Images as files in one folder per class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from engine import UsageError
from engine.decode import fault_of
from engine.interfaces import Records, Source

from .files import folder_at, listed, tell

ENDINGS = (".jpg", ".jpeg", ".png")
TEST_FOLDERS = ("test", "val", "valid", "validation")
THREADS = 8  # headers are read while others wait for the disk
CHUNK = 256  # files that a thread inspects at a time


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file: its path below the split's folder, its class, its size, and why it is unreadable ("" if not)."""

    path: str
    target: int
    bytes: int
    fault: str


class ImageFolder(Source):
    """Gives files as they are on the disk, read when asked for; safe to ask from any number of threads.

    The fingerprint covers the files' paths below ``folder``, their classes and their sizes in bytes. skipped: the files
    left out because they are unreadable, each with the reason.
    """

    def __init__(
        self, folder: Path, inspected: Sequence[ImageFile], classes: Sequence[str], shape: tuple[int, int, int]
    ) -> None:
        self.classes, self.shape = tuple(classes), shape
        self.skipped = [f"{folder / file.path} ({file.fault})" for file in inspected if file.fault]
        files = [file for file in inspected if not file.fault]
        self._folder = folder
        self._paths = [file.path for file in files]
        self._targets = torch.tensor([file.target for file in files])
        digest = hashlib.blake2b(digest_size=16)
        for file in files:
            digest.update(os.fsencode(f"{file.path}\0{file.target}\0{file.bytes}\0"))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def records(self, indices: Sequence[int]) -> Records:
        """Return the files' bytes; raises UsageError naming one that can no longer be read."""
        return Records(
            "encoded",
            [self._read(index) for index in indices],
            self._targets[torch.as_tensor(indices, dtype=torch.int64)],
        )

    def name_of(self, index: int) -> str:
        """Return the path of a record's file."""
        return str(self._folder / self._paths[index])

    def _read(self, index: int) -> bytes:
        try:
            return (self._folder / self._paths[index]).read_bytes()
        except OSError as error:
            raise UsageError(f"{self.name_of(index)} cannot be read ({error.strerror}); was it moved?") from error


def open_folder(
    root: str, split: str, shape: tuple[int, int, int], train: str, test: str | None, skip_unreadable: bool
) -> ImageFolder:
    """Return a split; every file's header has been read, so that unreadable ones are known before training.

    Raises UsageError naming a folder that is missing or holds no images, a test class that is not trained, and
    the unreadable files, unless they are to be skipped (then they are told).
    """
    if shape[0] not in (1, 3):
        raise UsageError(f"data.channels={shape[0]}: must be 3 (colour) or 1 (grayscale)")
    base = folder_at(root)
    train_folder = _split_folder(base, "train", (train,))
    classes = _classes(train_folder)
    folder, present = train_folder, set(classes)
    if split == "test":
        folder = _split_folder(base, "test", TEST_FOLDERS if test is None else (test,))
        present = set(_classes(folder))
        unknown = sorted(present - set(classes))
        if unknown:
            raise UsageError(f"{folder} has classes that {train_folder} lacks: {listed(unknown)}; make both agree")
    targets = {name: target for target, name in enumerate(classes) if name in present}
    files = list(_inspected(folder, targets))
    _tell_unreadable(folder, files, skip_unreadable)
    used = {file.target for file in files if not file.fault}
    empty = [name for name, target in targets.items() if target not in used]
    if empty:
        raise UsageError(
            f"{folder}: no readable {', '.join(ENDINGS)} file in class folder {listed(empty)}; "
            "put images there or delete the folder"
        )
    return ImageFolder(folder, files, classes, shape)


def _tell_unreadable(folder: Path, files: Sequence[ImageFile], skip: bool) -> None:
    unreadable = [f"{file.path} ({file.fault})" for file in files if file.fault]
    if unreadable and not skip:
        raise UsageError(
            f"{folder} has {len(unreadable)} unreadable image{'s' * (len(unreadable) > 1)}: {listed(unreadable)}; "
            "delete them or set data.skip_unreadable=true"
        )
    for name in unreadable:
        tell(f"skipping {folder}{os.sep}{name}")


def _split_folder(base: Path, split: str, names: Sequence[str]) -> Path:
    found = [name for name in names if (base / name).is_dir()]
    if not found:
        raise UsageError(f"data.root={base} has no folder {' or '.join(names)}; make it or set data.{split}")
    if len(found) > 1:
        raise UsageError(f"data.root={base} has {' and '.join(found)}; set data.{split} to the one to use")
    return base / found[0]


def _classes(folder: Path) -> list[str]:
    _, folders, _ = next(os.walk(folder, onerror=_unlistable))
    names = sorted(name for name in folders if not name.startswith("."))
    if not names:
        raise UsageError(f"{folder} has no class folders; put each class's images into a folder of its own")
    return names


def _inspected(folder: Path, targets: Mapping[str, int]) -> Iterator[ImageFile]:
    """Yield all image files of the classes in ``targets``, in the order of their classes and names."""
    found = [(path, target) for name, target in targets.items() for path in sorted(_images_below(folder, name))]
    chunks = [found[first : first + CHUNK] for first in range(0, len(found), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        for files in pool.map(lambda chunk: [_inspect(folder, *item) for item in chunk], chunks):
            yield from files


def _inspect(folder: Path, path: str, target: int) -> ImageFile:
    fault = fault_of(folder / path)
    return ImageFile(path, target, 0 if fault else os.path.getsize(folder / path), fault)


def _images_below(folder: Path, name: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder / name, onerror=_unlistable, followlinks=True):
        folders[:] = [sub for sub in folders if not sub.startswith(".")]
        below = os.path.relpath(parent, folder)
        for file in files:
            if file.lower().endswith(ENDINGS) and not file.startswith("."):
                yield os.path.join(below, file)


def _unlistable(error: OSError) -> NoReturn:
    raise UsageError(f"{error.filename} cannot be listed ({error.strerror}); check its permissions") from error
