"""A thousand faults in what is trained from, each named or shown to change nothing; `-m soak` for all of them.

Every fault is put before all that reads: records, the loader of a training (a native pass, in full order and by
blocks), that of an evaluation, and the commands. What they give is compared with what the sound data gives, bit for
bit.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import (
    IMAGE_FILES,
    LEVELS,
    Act,
    cut_short,
    exchanged,
    flipped_byte,
    grown,
    lost_block,
    misplaced,
    of_arrays,
    of_data,
    of_meta,
    other_label,
    photograph_cut_short,
    removed,
)
from packed import opened
from readings import BLOCKS, EVALUATION, OPENING, RECORDS, TRAINING, Reading, Sound, photographs, read_all

from engine.plugins.data import Folder
from engine.plugins.stores.verify import faults as faults_in

NAMED, UNCHANGED, ANOTHER, UNNOTICED = "named", "nothing changed", "another fingerprint", "other pixels"

STORE: dict[str, tuple[Act, int]] = {
    "a byte flipped in a data file": (of_data(flipped_byte), 60),
    "a byte flipped in an array": (of_arrays(flipped_byte), 50),
    "a byte flipped in meta.json": (of_meta(flipped_byte), 30),
    "a data file cut short": (of_data(cut_short), 30),
    "an array cut short": (of_arrays(cut_short), 30),
    "meta.json cut short": (of_meta(cut_short), 20),
    "512 bytes of a data file lost": (of_data(lost_block), 30),
    "a data file missing": (of_data(removed), 5),
    "an array missing": (of_arrays(removed), 10),
    "meta.json missing": (of_meta(removed), 1),
    "more at the end of a data file": (of_data(grown), 5),
    "more at the end of an array": (of_arrays(grown), 5),
    "two data files exchanged": (exchanged, 10),
    "a record written over another": (misplaced, 20),
    "a photograph cut short before it was packed": (photograph_cut_short, 40),
    **{f"another label, {level}": (other_label(level), 10) for level in LEVELS},
    **{f"a label of no class, {level}": (other_label(level, outside=True), 10) for level in LEVELS},
}
"""Faults of a store, and how many of each the long test tries in each kind of store."""
ENCODED_ONLY = {"a photograph cut short before it was packed"}
HARMLESS = {"a byte flipped in meta.json", "meta.json cut short", *ENCODED_ONLY}
"""Those that may change nothing: one kind of white space instead of another, or the mark of an image's end lost."""
ANOTHER_STORE = {f"another label, {LEVELS[-1]}"}
"""What nothing in a store can tell from the store of other data; the fingerprint that a resumed run compares can."""
IN_EVERY_FILE = {kind for kind in STORE if "missing" in kind or "more at" in kind}
"""Those that test_store_faults.py puts in every file of a store, on every change."""

FOLDER = {"empty": 15, "no image": 25, "cut short": 70, "a byte flipped": 70}
NO_CHECKSUM = {"a byte flipped"}
"""JPEG files have none, so some of these give other pixels; a store of the same files names every one."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Sound]:
    return {content: Sound(tmp_path_factory.mktemp("sound"), content) for content in ("pixels", "encoded")}


def verified(folder: Path, engine: Callable | None) -> tuple[int, list[str]]:
    """Return the exit code of ``engine verify`` and the faults it tells; without ``engine``, of what it calls."""
    if engine is None:
        found = list(faults_in(folder))
        return (2 if found else 0), found
    code, told, said = engine("verify", f"data.root={folder.parent}", f"splits=[{folder.name}]", "threads=1")
    assert "Traceback" not in said
    return code, [line for line in told.splitlines() if not line.endswith("all as they were packed")]


def outcome_of(folder: Path, sound: Sound, names: set[str], engine: Callable | None) -> str:
    """Return what became of a fault of a store: NAMED, UNCHANGED or ANOTHER; fails the test for all else."""
    reading = read_all(lambda: opened(folder))
    code, faults = verified(folder, engine)
    for line in reading.lines + faults:
        assert "\n" not in line
        assert str(folder) in line
        assert any(name in line for name in names), f"none of {names} is in: {line}"
    if reading.fingerprint not in ("", sound.reading.fingerprint):  # whose bytes are those that its checksums say
        assert (code, faults) == (0, [])
        assert set(reading.refused) <= {TRAINING, BLOCKS, EVALUATION}  # a window may need no more than what is left
        different = [way for way, _ in reading.differs_from(sound.reading) if way != RECORDS]
        assert not (different and reading.refused)
        return NAMED if reading.refused else ANOTHER if different else UNCHANGED
    assert reading.differs_from(sound.reading) == []
    if not reading.refused:
        assert (code, faults) == (0, [])
        assert len(reading.given) == len(sound.reading.given)
        return UNCHANGED
    assert OPENING in reading.refused or set(reading.refused) == {RECORDS, TRAINING, BLOCKS, EVALUATION}
    assert code == 2
    assert faults
    return NAMED


def try_store(sound: Sound, folder: Path, engine: Callable | None, counts: Counter, kind: str, times: int) -> None:
    for number in range(times):
        drawn = random.Random(f"{sound.content} {kind} {number}")
        shutil.rmtree(folder / "train", ignore_errors=True)
        shutil.copytree(sound.folder, folder / "train")
        names = STORE[kind][0](folder / "train", drawn)
        outcome = outcome_of(folder / "train", sound, names, engine)
        assert outcome == NAMED or kind in {UNCHANGED: HARMLESS, ANOTHER: ANOTHER_STORE}[outcome], number
        counts[kind, outcome] += 1


@pytest.mark.parametrize(("number", "kind"), list(enumerate(kind for kind in STORE if kind not in IN_EVERY_FILE)))
def test_a_fault_of_a_store(sound, tmp_path, engine, counts, number, kind):
    content = "encoded" if kind in ENCODED_ONLY or number % 2 else "pixels"
    # A command takes longer to start than all the rest; each kind has one in the long test.
    try_store(sound[content], tmp_path, None if number % 4 else engine, counts, kind, 1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("content", ["pixels", "encoded"])
def test_hundreds_of_faults_of_a_store(sound, tmp_path, engine, counts, content):
    for kind, (_, times) in STORE.items():
        if content == "encoded" or kind not in ENCODED_ONLY:
            try_store(sound[content], tmp_path, engine, counts, kind, times)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of 18 photographs to train, and the same to test."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    images = photographs()
    for number, (data, target) in enumerate(zip(images.images, images.targets.tolist(), strict=True)):
        ending = "png" if data.startswith(b"\x89PNG") else "jpg"
        for split in ("train", "test"):
            path = root / split / "abc"[target] / f"{number:02d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def folder_reading(root: Path) -> Reading:
    return read_all(lambda: Folder(root=str(root), size=24).build("train"), decoded=True)


def outcome_in_folder(root: Path, reading: Reading, sound: Reading, path: Path) -> str:
    """Return what became of a fault of a folder's file: NAMED, UNCHANGED or UNNOTICED."""
    for line in reading.lines:
        assert "\n" not in line
        assert str(path) in line or (str(root) in line and path.name in line)
    different = reading.differs_from(sound)
    assert len([way for way, _ in different if way == RECORDS]) <= 1  # the damaged file's, and no other's
    return UNNOTICED if different else NAMED if reading.refused else UNCHANGED


def require_told_by_command(engine: Callable, root: Path, path: Path, reading: Reading) -> None:
    """``engine train`` ends with exit code 2 and a line that names the file, unless its windows need the sound part."""
    shutil.rmtree(root.with_name("run"), ignore_errors=True)
    code, _, told = engine(
        "train", "data=folder", f"data.root={root}", "data.size=24", "augment=[random_resized_crop]",
        "augment.random_resized_crop.size=24", "model.width=2", "run.batch=6", "run.epochs=1", "observe=[]",
        f"out={root.with_name('run')}",
    )  # fmt: skip
    if code == 0:
        assert OPENING not in reading.refused
        return
    assert code == 2, told
    assert "Traceback" not in told
    assert path.name in told.strip().splitlines()[-1]


def try_folder(photos: Path, root: Path, engine: Callable, counts: Counter, kind: str, times: int) -> None:
    sound = folder_reading(photos)
    assert not sound.refused
    for number in range(times):
        drawn = random.Random(f"{kind} {number}")
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(photos, root)
        path = drawn.choice(sorted((root / "train").rglob("*.*")))
        IMAGE_FILES[kind](path, drawn)
        reading = folder_reading(root)
        outcome = outcome_in_folder(root, reading, sound, path)
        assert outcome != UNNOTICED or (kind in NO_CHECKSUM and path.suffix == ".jpg"), number
        if outcome == NAMED and number % 10 == 0:
            require_told_by_command(engine, root, path, reading)
        counts[f"{path.suffix[1:]} of a folder, {kind}", outcome] += 1


@pytest.mark.parametrize("kind", IMAGE_FILES)
def test_a_fault_of_an_image_file(photos, tmp_path, engine, counts, kind):
    try_folder(photos, tmp_path / "photos", engine, counts, kind, 1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_hundreds_of_faults_of_image_files(photos, tmp_path, engine, counts):
    for kind, times in FOLDER.items():
        try_folder(photos, tmp_path / "photos", engine, counts, kind, times)
