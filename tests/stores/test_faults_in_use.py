"""Faults at work: stores that change while they are read, and processes that end while they read or pack."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from damage import cut_short, flipped_byte, removed
from killed import command, photographs_in, splits
from packed import contents, opened, pack
from readings import Sound, content_of, loader_of, photographs, read_all

from engine import UsageError
from engine.loader import Position, Step
from engine.plugins.stores import layout
from engine.plugins.stores.packing import Packing
from engine.plugins.stores.recipe import Recipe

KILLED = Path(__file__).with_name("killed.py")
NAMED, UNCHANGED = "named", "nothing changed"
STEPS = 9  # three epochs


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Sound]:
    return {content: Sound(tmp_path_factory.mktemp("sound"), content) for content in ("pixels", "encoded")}


def overwritten(path: Path, drawn: random.Random) -> None:
    """Change a byte of every 100 in place."""
    with path.open("r+b") as file:
        for place in range(drawn.randrange(100), path.stat().st_size, 100):
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ drawn.randrange(1, 256)]))


def truncated(path: Path, drawn: random.Random) -> None:
    os.truncate(path, drawn.randrange(path.stat().st_size // 2))


def replaced(path: Path, drawn: random.Random) -> None:
    """Put another file of the same length in its place, as rsync does."""
    other = path.with_name("another")
    other.write_bytes(drawn.randbytes(path.stat().st_size))
    os.replace(other, path)


def store_removed(path: Path, drawn: random.Random) -> None:
    shutil.rmtree(path.parent)


WHILE_READ: dict[str, tuple[Callable[[Path, random.Random], None], str, int]] = {
    "overwritten": (overwritten, NAMED, 15),
    "cut short": (truncated, NAMED, 15),
    "replaced": (replaced, UNCHANGED, 5),
    "removed": (removed, UNCHANGED, 5),
    "removed with all of the store": (store_removed, UNCHANGED, 5),
}
"""What happens to a data file in use, what becomes of it, and how often the long test tries it."""


def try_while_read(sound: Sound, folder: Path, counts: Counter, kind: str, times: int) -> None:
    """Two threads read ahead while the file changes: what they give is what was packed, until they refuse."""
    act, expected, _ = WHILE_READ[kind]
    with closing(steps(sound.folder)) as reading:
        right = [content_of(step.batches[0]) for step in islice(reading, STEPS)]
    for number in range(times):
        drawn = random.Random(f"{sound.content} {kind} {number}")
        shutil.rmtree(folder / "train", ignore_errors=True)
        shutil.copytree(sound.folder, folder / "train")
        path = drawn.choice(sorted((folder / "train").glob("data-*")))
        moment, given, refusal = drawn.randrange(1, 4), 0, ""
        try:
            with closing(steps(folder / "train")) as reading:
                for step, expect in zip(reading, right, strict=False):
                    assert content_of(step.batches[0]) == expect, f"step {given} of {kind} {number}"
                    given += 1
                    if given == moment:
                        act(path, drawn)
        except UsageError as error:
            refusal = str(error)
        assert (NAMED if refusal else UNCHANGED) == expected, f"{kind} {number}: {refusal}"
        assert path.name in refusal or not refusal
        assert given == STEPS or refusal
        counts[f"a data file {kind} while a training reads", expected] += 1


def steps(folder: Path) -> Generator[Step]:
    return loader_of(opened(folder), threads=2).steps(Position())


@pytest.mark.parametrize(("number", "kind"), list(enumerate(WHILE_READ)))
def test_a_store_that_changes_while_a_training_reads(sound, tmp_path, counts, number, kind):
    try_while_read(sound[("pixels", "encoded")[number % 2]], tmp_path, counts, kind, 1)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("content", ["pixels", "encoded"])
def test_stores_that_change_while_a_training_reads(sound, tmp_path, counts, content):
    for kind, (_, _, times) in WHILE_READ.items():
        try_while_read(sound[content], tmp_path, counts, kind, times)


def try_killed(folder: Path, counts: Counter, kind: str, content: str, times: int) -> None:
    """Have killed.py kill so many processes, each of which leaves a store as it should be."""
    done = subprocess.run(
        [sys.executable, str(KILLED), str(folder), kind, content, str(times)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    killed = int(done.stdout)
    assert killed >= times // 2, "most had ended by themselves"
    left = UNCHANGED if kind == "reading" else "goes on to the same bytes"
    counts[f"kill -9 while {kind} ({content})", left] += killed
    counts[f"kill -9, too late, while {kind} ({content})", left] += times - killed


def test_a_reader_that_is_killed(tmp_path, counts):
    """On every change, test_packing.py kills what packs."""
    try_killed(tmp_path, counts, "reading", "pixels", 2)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("content", ["pixels", "encoded"])
@pytest.mark.parametrize(("kind", "times"), [("reading", 15), ("packing", 30)])
def test_processes_that_are_killed(tmp_path, counts, kind, content, times):
    try_killed(tmp_path, counts, kind, content, times)


@pytest.fixture
def photos(tmp_path) -> Path:
    photographs_in(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """Return a function that gives a disk of so many KiB, kept with its content when asked again."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def sized(kib: int) -> Path:
        how = f"size={kib}k" + (",remount" if mounted else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode and not mounted:
            pytest.skip(f"no disk of a size of its own can be mounted: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted.append(kib)
        return folder

    yield sized
    if mounted:
        subprocess.run(["umount", folder], check=True)


def try_full_disk(photos: Path, disk: Callable, engine: Callable, counts: Counter, times: int) -> None:
    """``engine pack`` on a disk that is too small ends with exit code 3 and a line, and goes on once there is room."""
    whole = disk(100_000) / "whole"
    assert engine(*command(photos, whole, "pixels")[1:])[0] == 0
    expected = splits(whole)
    most = sum(map(len, expected.values())) // 1024
    shutil.rmtree(whole)
    for number in range(times):
        out = disk(random.Random(number).randrange(8, most)) / "store"
        code, _, told = engine(*command(photos, out, "pixels")[1:])
        assert code == 3, told
        assert f"{out}" in told.strip().splitlines()[-1]
        assert "make room" in told
        assert "Traceback" not in told
        disk(100_000)
        code, _, told = engine(*command(photos, out, "pixels")[1:])
        assert code == 0, told
        assert splits(out) == expected
        shutil.rmtree(out)
        counts["the disk is full while packing", "named, goes on to the same bytes"] += 1


def test_a_full_disk(photos, disk, engine, counts):
    try_full_disk(photos, disk, engine, counts, 1)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_full_disks(photos, disk, engine, counts):
    try_full_disk(photos, disk, engine, counts, 30)


def try_unfinished(sound: Sound, folder: Path, counts: Counter, times: int) -> None:
    """Files of an unfinished store that are damaged are named when it is gone on with, or make no difference."""
    recipe, size = Recipe(sound.content, None), 30_000 if sound.content == "pixels" else 4000
    for number in range(times):
        drawn = random.Random(f"unfinished {sound.content} {number}")
        shutil.rmtree(folder / "train", ignore_errors=True)
        begun = Packing.begin(folder / "train", photographs(), recipe, size)
        assert begun
        for shard in (0, 1):
            begun.write_shard(shard, 1, lambda count: None)
        path = drawn.choice([path for path in sorted((folder / "train").rglob("*")) if path.is_file()])
        act = drawn.choice([flipped_byte, cut_short, removed])
        act(path, drawn)
        refusal = ""
        try:
            pack(folder / "train", photographs(), sound.content, shard_size=size)
        except UsageError as error:
            refusal, became = str(error), NAMED
        if refusal:
            assert path.name in refusal or (path.name == layout.PLAN and str(folder / "train") in refusal)
        else:
            reading = read_all(lambda: opened(folder / "train"))
            assert reading.differs_from(sound.reading) == [], f"{path} {act.__name__}"
            assert reading.fingerprint == sound.reading.fingerprint
            assert all(path.name in line for line in reading.lines)
            became = f"{NAMED} when read" if reading.refused else UNCHANGED
            assert reading.refused or contents(folder / "train") == contents(sound.folder)
        counts[f"unfinished store, {act.__name__.replace('_', ' ')}: {path.suffix or path.name}", became] += 1


@pytest.mark.parametrize("content", ["pixels", "encoded"])
def test_a_damaged_unfinished_store(sound, tmp_path, counts, content):
    try_unfinished(sound[content], tmp_path, counts, 2)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("content", ["pixels", "encoded"])
def test_damaged_unfinished_stores(sound, tmp_path, counts, content):
    try_unfinished(sound[content], tmp_path, counts, 50)
