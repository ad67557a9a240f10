"""Faults of the data found by worker processes are told as they are by threads: the same line, the same exit code."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from damage import cut_short, flipped_byte
from killed import photographs_in
from packed import opened, pack, photographs, raw
from readings import CPU

from engine import Key, UsageError
from engine.interfaces import Source
from engine.loader import Loader, Position
from engine.order import Shuffle
from engine.plugins.data import Folder
from engine.plugins.stores import layout
from engine.workers import Workers

KINDS = ("threads", "processes")


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    shared = Workers(1)
    yield shared
    shared.close()


def refusal(open_source: Callable[[], Source], act: Callable[[], None], workers: Workers | None, kind: str) -> str:
    """Return how a training is refused whose data is damaged by ``act`` after its first step."""
    given = {"batch": 6, "layout": CPU, "shuffle": Shuffle(kind, block=4, mixed=2)}
    run = Loader(open_source(), {}, Key.of(5), **given, workers=workers, reopen=open_source)
    stream = run.steps(Position())
    next(stream)
    act()
    with pytest.raises(UsageError) as caught:
        list(stream)
    return str(caught.value)


@pytest.fixture(params=["flipped byte", "cut short"])
def damage(request) -> Callable[[Path], None]:
    """Do the same to a file each time: to a byte of its second half, or to all of that."""

    def act(path: Path) -> None:
        if request.param == "cut short":
            os.truncate(path, path.stat().st_size // 2)
            return
        with path.open("r+b") as file:
            file.seek(path.stat().st_size * 3 // 4)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    return act


@pytest.mark.parametrize("kind", ["full", "blocks"])
@pytest.mark.parametrize("content", ["pixels", "encoded"])
def test_a_store_damaged_while_it_is_used(workers, tmp_path, damage, content, kind):
    told = []
    for name, given in (("one", None), ("other", workers)):
        folder = tmp_path / name / "train"
        pack(folder, raw(24) if content == "pixels" else photographs(), content, shard_size=1 << 20)
        path = folder / "data-00000.bin"
        line = refusal(partial(opened, folder), partial(damage, path), given, kind)
        assert line.startswith(f"{path}: record ")
        told.append(line.replace(str(folder), "..."))
    assert told[0] == told[1]


@pytest.mark.parametrize("kind", ["full", "blocks"])
@pytest.mark.parametrize(("left", "reason"), [(b"<html>", "not a JPEG or PNG"), (None, "Premature end of JPEG file")])
def test_files_of_a_folder_that_are_no_images_any_more(workers, tmp_path, left, reason, kind):
    told = []
    for name, given in (("one", None), ("other", workers)):
        root = tmp_path / name
        photographs_in(root)
        open_source = partial(Folder(root=str(root), size=24).build, "train")
        paths = sorted((root / "train").rglob("*.jpg"))

        def act(paths: list[Path] = paths) -> None:
            for path in paths:
                path.write_bytes(left or path.read_bytes()[:-500])

        line = refusal(open_source, act, given, kind)
        assert f"cannot be decoded ({reason})" in line
        told.append(line.replace(str(root), "..."))
    assert told[0] == told[1]


def store_with_a_flipped_byte(folder: Path) -> tuple[list[str], str]:
    pack(folder / "data" / "train", raw(24))
    shutil.copytree(folder / "data" / "train", folder / "data" / "test")
    flipped_byte(folder / "data" / "train" / "data-00000.bin", random.Random(0))
    return ["data=store"], "data-00000.bin: record "


def truncated_store(folder: Path) -> tuple[list[str], str]:
    words, _ = store_with_a_flipped_byte(folder)
    cut_short(folder / "data" / "train" / layout.shard_name(0), random.Random(0))
    return words, "data-00000.bin has "


def no_image(folder: Path) -> tuple[list[str], str]:
    photographs_in(folder / "data")
    (folder / "data" / "train" / "a" / "page.jpg").write_text("<html>404</html>")
    return ["data=folder", "data.size=16"], "a/page.jpg (not a JPEG or PNG)"


@pytest.mark.parametrize("make", [store_with_a_flipped_byte, truncated_store, no_image])
def test_a_command_ends_with_the_same_line_and_code(engine, tmp_path, make):
    words, named = make(tmp_path)
    words += ["data.root=data", "model.width=2", "augment=[normalize]", "augment.normalize.mean=[0.5]"]
    words += ["augment.normalize.std=[0.25]", "run.batch=4", "run.epochs=1", "observe=[]"]
    told = []
    for kind in KINDS:
        code, _, err = engine("train", *words, f"data.workers={kind}", f"out={kind}")
        assert code == 2
        assert "Traceback" not in err
        told.append(err.strip().splitlines()[-1])
        assert named in told[-1]
    assert told[0] == told[1]
