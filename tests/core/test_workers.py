"""Worker processes make the same batches, bit for bit, tell what went wrong, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from loading_parts import Broken, Deadly, Keeping, Noise, Spin, Telling, augmentations
from small_run import assert_same as assert_equal
from small_run import everything

from engine import Key, RunFailed, UsageError
from engine.loader import Layout, Loader, Position, Step, TestLoader
from engine.order import Shuffle
from engine.workers import Workers

LAYOUT = Layout(torch.device("cpu"))
BLOCKS = Shuffle("blocks", block=16, mixed=2)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    shared = Workers(3)
    yield shared
    shared.close()


def loader(named, workers=None, reopen=Noise, layout=LAYOUT, **settings) -> Loader:
    given = {"batch": 8, "accumulate": 2, "threads": 0, **settings}
    return Loader(reopen(), named, Key.of(5), layout=layout, workers=workers, reopen=reopen, **given)


def steps(loader: Loader, count: int, start: Position | None = None) -> list[Step]:
    return list(islice(loader.steps(start or Position()), count))


def assert_same(one: list[Step], other: list[Step]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.end, a.epoch, a.epochs_done, a.count) == (b.end, b.epoch, b.epochs_done, b.count)
        for x, y in zip(a.batches, b.batches, strict=True):
            for name in ("images", "targets", "samples"):
                mine, theirs = getattr(x, name), getattr(y, name)
                assert mine.dtype == theirs.dtype
                assert torch.equal(mine, theirs)
            assert x.images.stride() == y.images.stride()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_make_the_batches_of_threads_bit_for_bit(workers, count):
    """With an augmentation in pure Python, and everything random, over the end of an epoch."""
    named = {"spin": Spin(), **augmentations()}
    one = steps(loader(named), 10)
    other = steps(loader(named, workers, threads=count, prefetch=count + 1), 10)
    assert_same(one, other)


def test_types_and_memory_order_come_back_as_they_were(workers):
    for layout in (Layout(LAYOUT.device, torch.bfloat16), Layout(LAYOUT.device, torch.float64, channels_last=True)):
        named = augmentations()
        assert_same(steps(loader(named, layout=layout), 3), steps(loader(named, workers, layout=layout, threads=1), 3))


def test_resuming_and_block_order_and_shares_of_ranks_are_the_same_too(workers):
    named = augmentations()
    whole = steps(loader(named, shuffle=BLOCKS), 9)
    assert_same(whole[4:], steps(loader(named, workers, shuffle=BLOCKS, threads=2), 5, whole[3].end))
    shared = {"workers": workers, "shuffle": BLOCKS, "threads": 2, "world": 2}
    parts = [steps(loader(named, rank=rank, **shared), 9) for rank in range(2)]
    for step, *shares in zip(whole, *parts, strict=True):
        for micro, batch in enumerate(step.batches):
            assert torch.equal(batch.images, torch.cat([share.batches[micro].images for share in shares]))


def test_test_split_comes_from_processes_the_same(workers):
    given = {"batch": 32, "layout": LAYOUT}
    one = TestLoader(Noise(), augmentations(), **given)
    other = TestLoader(Noise(), augmentations(), **given, threads=2, workers=workers, reopen=Noise)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)


def test_workers_tell_what_their_batches_took(workers):
    run = loader({"spin": Spin()}, workers, threads=1)
    stream = run.steps(Position())
    assert next(stream).spent.augment > 0
    assert run.spent.augment > 0


def test_processes_are_started_once_and_work_in_turn(workers, tmp_path):
    for _ in range(2):
        steps(loader({"telling": Telling(tmp_path)}, workers, threads=3, prefetch=6), 20)
    seen = {int(path.name) for path in tmp_path.iterdir()}
    assert len(seen) == 3
    assert os.getpid() not in seen


def test_unreadable_record_is_named_at_its_turn(workers):
    opened = partial(Noise, 120, bad=77)
    plain, other = ([], [])
    for found, given in ((plain, {}), (other, {"workers": workers, "threads": 2})):
        with pytest.raises(UsageError, match=r"^photo_77\.jpg cannot be read; delete it$"):
            found.extend(loader(augmentations(), reopen=opened, **given).steps(Position()))
    assert_same(plain, other)


def test_a_defect_shows_the_traceback_of_the_process_it_is_in(workers):
    with pytest.raises(ZeroDivisionError, match="a defect of the augmentation") as caught:
        steps(loader({"broken": Broken()}, workers, threads=1), 1)
    assert "loading_parts.py" in caught.value.__notes__[0]


def test_what_cannot_be_sent_is_named_before_anything_starts():
    class Local(Spin):
        pass

    keeping = Keeping()
    keeping.prepare(Noise)
    for named, why in (({"spin": Spin(), "local": Local()}, r"augment\.local"), ({"keep": keeping}, r"augment\.keep")):
        with pytest.raises(
            UsageError, match=rf"{why} cannot be sent to a worker process \(.+\); use data.workers=thre"
        ):
            loader(named, Workers(1))
    with pytest.raises(UsageError, match="data cannot be sent"):
        loader({}, Workers(1), reopen=lambda: Noise())
    with pytest.raises(UsageError, match=r"data\.threads=1 or more"):
        Workers(0)


def test_data_that_changed_since_the_run_began_is_refused(workers, tmp_path):
    source = Noise()
    changed = Loader(
        source, {}, Key.of(0), batch=8, layout=LAYOUT, workers=workers, reopen=partial(Noise, changed="!"), threads=1
    )
    with pytest.raises(UsageError, match="is not what the run began with"):
        next(changed.steps(Position()))


def test_a_killed_worker_ends_the_run_with_one_line():
    own = Workers(1)
    run = loader({"deadly": Deadly()}, own, threads=2, prefetch=6)
    try:
        with pytest.raises(RunFailed, match=r"worker process \d+ was ended by SIGKILL; if nobody did that, memory"):
            steps(run, 1)
        with pytest.raises(RunFailed, match="was ended by SIGKILL"):  # nobody waits for those that are gone
            steps(run, 1)
    finally:
        run.close()
    with pytest.raises(RunFailed, match="have been closed"):
        steps(run, 1)


def children() -> set[str]:
    """Return the processes that this one has started and that have not ended."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_run_with_processes_ends_as_one_with_threads_and_ends_them(make, registry):
    before, runs = children(), []
    for kind in ("threads", "processes"):
        data = registry.entry("data", "digits").options(size=8, threads=1, workers=kind)
        run = make(kind, data=data, run={"batch": 128, "epochs": 1})
        assert run.fit() == "done"
        runs.append(run)
        assert children() == before
    assert_equal(everything(runs[0]), everything(runs[1]))
    assert runs[0].best.score == runs[1].best.score


PARENT = """
import sys, torch
from pathlib import Path
sys.path[:0] = [{tests!r}]
from loading_parts import Noise, Telling
from engine import Key
from engine.loader import Layout, Loader, Position
from engine.workers import Workers

workers = Workers(1)
layout = Layout(torch.device("cpu"))
named = {{"telling": Telling(Path({folder!r}), seconds=0.05)}}
loader = Loader(Noise(), named, Key.of(0), batch=8, layout=layout, workers=workers, reopen=Noise, threads=1)
for step in loader.steps(Position()):
    pass
"""


def alive(process: int) -> bool:
    """Return whether a process is there, and is not waiting for its parent to ask how it ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_no_worker_outlives_its_parent_however_that_ends(tmp_path):
    """Signals go to the whole process group, as Ctrl-C does; SIGKILL to the parent alone."""
    parents = {}
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):  # all at once, as starting them takes seconds
        folder = tmp_path / number.name
        folder.mkdir()
        text = PARENT.format(tests=str(Path(__file__).parent), folder=str(folder))
        parents[number] = subprocess.Popen(
            [sys.executable, "-c", text], start_new_session=True, stderr=subprocess.DEVNULL
        )
    try:
        for number, parent in parents.items():
            folder = tmp_path / number.name
            found = wait_for(lambda folder=folder: [int(path.name) for path in folder.iterdir()], parent)
            (os.kill if number == signal.SIGKILL else os.killpg)(parent.pid, number)
            parent.wait(180)
            assert parent.returncode == -number or (number == signal.SIGINT and parent.returncode in (1, 130))
            wait_for(lambda found=found: not any(map(alive, found)), None)
    finally:
        for parent in parents.values():
            parent.kill()
            parent.wait()


def wait_for(condition, process: subprocess.Popen | None):
    """Return what ``condition`` returns once that is true; fail if it does not become so, or ``process`` ends."""
    deadline = time.monotonic() + 180  # starting them is slow where others use the cores
    while not (found := condition()):
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
