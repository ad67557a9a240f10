"""Kills processes that read or pack a store, and looks at what they left: python killed.py FOLDER KIND CONTENT TIMES.

KIND "reading": a training whose threads read ahead. KIND "packing": ``engine pack``, at any moment; the same command
then goes on, and must give the store that an undisturbed one gives. They are forked from this process, which has no
threads. Prints how often a process was killed before it had ended by itself.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from packed import contents, opened, smooth
from PIL import Image
from readings import Sound, loader_of, read_all

from engine.cli import main
from engine.loader import Position
from engine.plugins.stores import layout

LONGEST = 60  # seconds after which a child that hangs ends itself


def child(work: Callable[[], None]) -> int:
    """Do something in a process of its own, which says nothing; return the process's number."""
    process = os.fork()
    if process:
        return process
    signal.alarm(LONGEST)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        work()
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    except BaseException:
        os._exit(99)
    os._exit(0)


def killed_reading(folder: Path, content: str, times: int) -> int:
    """Kill trainings after some steps; the store is left as it was, and reads as it did."""
    sound = Sound(folder, content)
    before = contents(sound.folder)
    for number in range(times):
        told, tells = os.pipe()

        def read(told: int = told, tells: int = tells) -> None:
            os.close(told)
            for _ in loader_of(opened(sound.folder), threads=2).steps(Position()):
                os.write(tells, b".")

        process = child(read)
        os.close(tells)
        for _ in range(1 + 7 * number % 40):
            assert os.read(told, 1) == b".", "the training ended by itself"
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        os.close(told)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert contents(sound.folder) == before
    assert read_all(lambda: opened(sound.folder)) == sound.reading
    return times


def photographs_in(root: Path) -> None:
    """Write photographs whose pixels fill several data files of the smallest size."""
    for number in range(8):
        for split in layout.SPLITS[: 2 if number % 4 == 0 else 1]:
            path = root / split / "ab"[number // 4] / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(smooth(300 + number, 400, number)).save(path)


def command(photos: Path, out: Path, content: str) -> list[str]:
    """Return the words of an ``engine pack``."""
    return [
        "engine", "pack", "data=folder", f"data.root={photos}", f"content={content}", "shard_size=1", "threads=2",
        f"out={out}",
    ]  # fmt: skip


def splits(out: Path) -> dict[str, bytes]:
    """Return all files of both splits; not the lock beside them."""
    return {f"{name}/{path}": data for name in layout.SPLITS for path, data in contents(out / name).items()}


def packing(words: list[str]) -> int:
    """Give a command in a process of its own; return the process's number."""

    def run() -> None:
        sys.argv = words
        main()

    return child(run)


def killed_packing(folder: Path, content: str, times: int) -> int:
    """Kill packings at random moments of the time that an undisturbed one takes; return how many had not ended."""
    photographs_in(folder / "photos")
    begun, killed = time.monotonic(), 0
    assert os.waitpid(packing(command(folder / "photos", folder / "whole", content)), 0)[1] == 0
    lasts, expected = time.monotonic() - begun, splits(folder / "whole")
    for number in range(times):
        words = command(folder / "photos", folder / "out", content)
        process = packing(words)
        ended = os.pidfd_open(process)
        # Not an exact moment, and none is needed: whatever it was doing, the same must come of it.
        select.select([ended], [], [], lasts * random.Random(f"{content} {number}").uniform(0.1, 1))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        os.close(ended)
        killed += os.WIFSIGNALED(status)
        for name in layout.SPLITS:
            if (folder / "out" / name / layout.META).exists():  # then all the rest is there, and right
                found = contents(folder / "out" / name)
                assert {path for path in found if not path.startswith(layout.WORK)} == set(
                    contents(folder / "whole" / name)
                )
                assert all(expected.get(f"{name}/{path}", data) == data for path, data in found.items())
        status = os.waitpid(packing(words), 0)[1]
        assert status == 0, f"{content} {number}: ended with {status}"
        assert splits(folder / "out") == expected, f"{content} {number}"
        shutil.rmtree(folder / "out")
    return killed


if __name__ == "__main__":
    work = {"reading": killed_reading, "packing": killed_packing}[sys.argv[2]]
    print(work(Path(sys.argv[1]), sys.argv[3], int(sys.argv[4])))
