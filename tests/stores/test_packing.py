"""Packing goes on after whatever ended it, and leaves nothing out that it does not name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packed import Given, contents, files, opened, pack, raw

from engine import RunFailed, UsageError
from engine.plugins.stores import layout, packing
from engine.plugins.stores.packing import Packing
from engine.plugins.stores.recipe import Recipe

INTERRUPTED = Path(__file__).with_name("interrupted.py")


def disturbed(folder: Path, kind: str, first: int, step: int) -> int:
    """Return how often a packing was disturbed, each time found to go on to the same bytes."""
    command = [sys.executable, str(INTERRUPTED), str(folder), kind, str(first), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path):
    assert disturbed(tmp_path, "kill", 1, 13) > 8


def test_a_full_disk_anywhere_is_told_and_it_goes_on_to_the_same_bytes(tmp_path):
    assert disturbed(tmp_path, "full", 0, 400) >= 5


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("kind", "step"), [("kill", 1), ("full", 10)])
def test_disturbed_at_every_event(tmp_path, kind, step):
    assert disturbed(tmp_path, kind, 1, step) > 100


def test_a_disk_that_is_full_at_a_rename(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(layout.os, "replace", refuse)
        with pytest.raises(RunFailed, match=r"train cannot be written \(No space left on device\): make room and give"):
            pack(tmp_path / "train", raw())
    pack(tmp_path / "train", raw())
    assert len(opened(tmp_path / "train")) == 20


def test_a_finished_store_is_left_alone(tmp_path):
    pack(tmp_path / "train", raw())
    before = contents(tmp_path)
    assert Packing.begin(tmp_path / "train", raw(), Recipe("pixels", None), 1 << 20) is None
    assert contents(tmp_path) == before


@pytest.mark.parametrize("unfinished", [True, False])
def test_another_packing_in_the_same_folder_is_refused(tmp_path, unfinished):
    if unfinished:
        begun = Packing.begin(tmp_path / "train", raw(), Recipe("pixels", None), 1 << 20)
        assert begun
        begun.write_shard(0, 1, lambda count: None)
    else:
        pack(tmp_path / "train", raw())
    before = contents(tmp_path)
    other = raw()
    other.fingerprint = "of other data"
    for source, options in ((other, {}), (raw(), {"shorter_side": 4}), (raw(), {"shard_size": 500})):
        with pytest.raises(UsageError, match=r"store of other data or options: delete it, or choose another out="):
            pack(tmp_path / "train", source, **options)
    assert contents(tmp_path) == before


def test_somebody_elses_folder_is_left_alone(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files that are no store"):
        pack(tmp_path / "train", raw())
    assert contents(tmp_path) == {"train/notes.txt": b"mine"}


def test_a_damaged_working_file_is_named(tmp_path):
    begun = Packing.begin(tmp_path / "train", raw(), Recipe("pixels", None), 1 << 20)
    assert begun
    begun.write_shard(0, 1, lambda count: None)
    part = tmp_path / "train" / layout.WORK / "00000.npz"
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(UsageError, match=rf"^{part} is damaged: delete it"):
        begun.finished()
    (tmp_path / "train" / layout.WORK / layout.PLAN).write_text("{")
    with pytest.raises(UsageError, match=r"plan.json cannot be read: delete"):
        pack(tmp_path / "train", raw())


def test_a_data_file_that_was_lost_is_packed_again(tmp_path):
    pack(tmp_path / "whole", raw(), shard_size=1000)
    begun = Packing.begin(tmp_path / "train", raw(), Recipe("pixels", None), 1000)
    assert begun
    for number in range(begun.shards):
        begun.write_shard(number, 1, lambda count: None)
    (tmp_path / "train" / layout.shard_name(1)).unlink()
    os.truncate(tmp_path / "train" / layout.shard_name(2), 7)
    assert begun.finished() == [0, 3]
    pack(tmp_path / "train", raw(), shard_size=1000)
    assert contents(tmp_path / "train") == contents(tmp_path / "whole")


def spoiled() -> Given:
    """Return a source that does not look at its files: the third is empty, the fifth a text, the seventh cut short."""
    images = files()[:9]
    images[2], images[4], images[6] = b"", b"<html>404</html>", images[6][:-300]
    source = Given(images, torch.arange(9) % 3, shape=(3, 24, 24))
    source.name_of = lambda index: f"photos/{index}.jpg"
    return source


@pytest.mark.parametrize("content", ["pixels", "encoded"])
@pytest.mark.parametrize("shard_size", [1, 1 << 20])
def test_unreadable_images_are_named_and_left_out(tmp_path, content, shard_size):
    meta = pack(tmp_path / "train", spoiled(), content, shard_size=shard_size)
    assert [line.partition(" ")[0] for line in meta.skipped] == [f"photos/{n}.jpg" for n in (2, 4, 6)]
    assert all("cannot be decoded" in line for line in meta.skipped)
    store, sound = opened(tmp_path / "train"), [0, 1, 3, 5, 7, 8]
    assert store.records(range(6)).targets.tolist() == [index % 3 for index in sound]
    if content == "encoded":
        assert store.records(range(6)).images == [spoiled().images[index] for index in sound]


def refusing(record: int) -> Given:
    """Return a source that cannot give one of its records at the moment."""
    source = raw()
    records = source.records

    def some(indices):
        if record in indices:
            raise UsageError(f"photos/{record}.jpg cannot be read (Input/output error)")
        return records(indices)

    source.records = some
    return source


def test_a_record_that_the_source_cannot_give_ends_the_packing_and_is_packed_later(tmp_path):
    options = {"shard_size": 5 * 192}
    pack(tmp_path / "whole", raw(), **options)
    begun = Packing.begin(tmp_path / "train", raw(), Recipe("pixels", None), **options)
    assert begun
    begun = replace(begun, source=refusing(7))
    begun.write_shard(0, 1, lambda count: None)
    with pytest.raises(UsageError, match=r"^photos/7.jpg cannot be read \(Input/output error\)$"):
        begun.write_shard(1, 1, lambda count: None)
    assert begun.finished() == [0]
    assert list(pack(tmp_path / "train", raw(), **options).skipped) == []
    assert contents(tmp_path / "train") == contents(tmp_path / "whole")


@pytest.mark.parametrize("changed", ["pixels", "label", "decodes"])
def test_a_source_that_changed_is_noticed_before_it_is_gone_on_with(tmp_path, changed):
    """Of 20 records, all are compared; the fingerprint is the same."""
    before, after = (spoiled(), spoiled()) if changed == "decodes" else (raw(), raw())
    begun = Packing.begin(tmp_path / "train", before, Recipe("pixels", None), 1 << 20)
    assert begun
    begun.write_shard(0, 1, lambda count: None)
    begun.require_same([0], 1)
    if changed == "pixels":
        after.images[4, 0, 0, 0] ^= 1
    elif changed == "label":
        after.targets[4] = (after.targets[4] + 1) % 3
    else:
        after.images[4] = after.images[3]
    with pytest.raises(UsageError, match=r"/4(.jpg)? has changed since|record 4 has changed since it was packed; del"):
        replace(begun, source=after).require_same([0], 1)


def test_what_is_compared_is_spread_over_every_finished_data_file(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "COMPARED", 3)
    begun = Packing.begin(tmp_path / "train", raw(), Recipe("pixels", None), 10 * 192)
    assert begun
    begun = replace(begun, portion=2)
    for number in (0, 1):
        begun.write_shard(number, 1, lambda count: None)
    asked, source = [], raw()
    records = source.records
    source.records = lambda indices: asked.extend(indices) or records(indices)
    replace(begun, source=source).require_same([0, 1], 0)
    assert asked == [0, 4, 9, 10, 14, 19]


def test_names_are_on_the_disk_before_and_after_the_commit(tmp_path, monkeypatch):
    done, fsync, replaced = [], os.fsync, os.replace
    out = tmp_path / "out"

    def flushed(file: int) -> None:
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{file}"))))
        fsync(file)

    def renamed(old: Path, new: Path) -> None:
        done.append(("replace", Path(new)))
        replaced(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    pack(out / "train", raw())
    names = [("fsync", out / "train"), ("fsync", out), ("fsync", tmp_path)]
    plan = done.index(("replace", out / "train" / layout.WORK / layout.PLAN))
    data = done.index(("fsync", out / "train" / layout.shard_name(0)))
    assert done[plan + 2 : plan + 5] == names
    assert plan + 4 < data
    commit = done.index(("replace", out / "train" / layout.META))
    assert done[commit + 1 :] == [names[0], *names]
    assert done[commit - 1][0] == "fsync"


def test_the_part_of_a_lost_data_file_does_not_vouch_for_half_of_a_new_one(tmp_path):
    begun = Packing.begin(tmp_path / "train", raw(), Recipe("pixels", None), 5 * 192)
    assert begun
    begun.write_shard(1, 1, lambda count: None)
    (tmp_path / "train" / layout.shard_name(1)).unlink()
    with pytest.raises(UsageError, match="Input/output error"):
        replace(begun, source=refusing(7)).write_shard(1, 1, lambda count: None)
    assert not (tmp_path / "train" / layout.WORK / "00001.npz").exists()


def test_a_source_without_a_readable_image(tmp_path):
    source = Given([b"", b"no"], torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UsageError, match="train: none of the 2 images can be decoded"):
        pack(tmp_path / "train", source)
    assert not (tmp_path / "train" / layout.META).exists()


def test_a_reader_need_not_open_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "MOST_SHARDS", 3)
    assert len(pack(tmp_path / "train", raw(), shard_size=1).shards) == 3
    assert len(opened(tmp_path / "train")) == 20
