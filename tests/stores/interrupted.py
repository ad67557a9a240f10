"""Packs while something goes wrong, in processes of its own: python interrupted.py FOLDER KIND FIRST STEP.

KIND "kill": at its nth event (a write to the disk, a rename, a removal, a portion prepared) the packing process is
ended by SIGKILL, for every STEP-th n from FIRST on until it gets through. KIND "full": no file may grow beyond n bytes.
Each time the packing then goes on without disturbance, and must give the store that an undisturbed one gives. Prints
how often it went wrong.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from packed import contents, pack, raw

from engine import RunFailed
from engine.plugins.stores import layout, packing
from engine.plugins.stores.recipe import Recipe

SOURCE = raw(60)
OPTIONS = {"shard_size": 8 * 192}
MOST = 20_000  # bytes that no file of the store reaches


def count_down(events: int) -> None:
    """Have the nth event end this process."""
    left = [events]

    def counted(work: Callable) -> Callable:
        def wrapper(*given, **named):
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*given, **named)

        return wrapper

    for owner, names in ((os, ("fsync", "replace")), (packing.shutil, ("rmtree",)), (os, ("unlink", "rmdir"))):
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))
    Recipe.prepare = counted(Recipe.prepare)
    layout.view = counted(layout.view)  # before each record is written


def killed(folder: Path, events: int) -> bool:
    """Pack in a process that is killed at an event; return whether it was before it had got through."""
    child = os.fork()
    if child == 0:
        count_down(events)
        pack(folder, SOURCE, **OPTIONS)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"exit code {status} at event {events}"
    return os.WIFSIGNALED(status)


def full(folder: Path, limit: int) -> bool:
    """Pack in a process whose files may have so many bytes; return whether it ran out of them."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            pack(folder, SOURCE, **OPTIONS)
        except RunFailed as error:
            line = str(error)
            assert line.startswith(f"{folder} cannot be written (File too large): make room"), line
            assert "\n" not in line
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status), f"signal {status} at a limit of {limit}"
    assert os.WEXITSTATUS(status) in (0, 3)
    assert not list(folder.glob(".*.partial"))
    return os.WEXITSTATUS(status) == 3


def main(folder: Path, kind: str, first: int, step: int) -> None:
    """Let it go wrong at every STEP-th place."""
    pack(folder / "undisturbed", SOURCE, **OPTIONS)
    expected = contents(folder / "undisturbed")
    wrong, place = 0, first
    while True:
        disturbed = folder / f"{kind}-{place}"
        went_wrong = (killed if kind == "kill" else full)(disturbed, place)
        assert not (disturbed / layout.META).exists() or contents(disturbed).items() >= expected.items()
        finished = {path: path.stat().st_mtime_ns for path in disturbed.glob("data-*") if _finished(path)}
        pack(disturbed, SOURCE, **OPTIONS)
        assert contents(disturbed) == expected, f"{kind} {place}"
        for path, written in finished.items():
            assert path.stat().st_mtime_ns == written, f"{path} was packed twice"
        shutil.rmtree(disturbed)
        wrong, place = wrong + went_wrong, place + step
        if not went_wrong or place > MOST:
            break
    print(wrong)


def _finished(path: Path) -> bool:
    part = path.parent / layout.WORK / f"{path.name[5:10]}.npz"
    return part.exists() or (path.parent / layout.META).exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
