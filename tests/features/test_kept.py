"""Features on the disk: whole or not there, made once, found again, refused or made anew when damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from deep import Deep, trained_together
from small_run import assert_same

from engine import RunFailed, UsageError
from engine.features.arrays import DamagedArrays, Growing, opened
from engine.features.kept import kept
from engine.features.key import key_of, run_facts
from engine.options import RunOptions
from engine.plugins.precision import Float32
from engine.plugins.transfer import Head
from engine.testing.processes import together
from engine.testing.small import SmallData

KEY = "0123abcd"
SHAPES = {"features": ((6, 3, 2, 1), torch.bfloat16), "targets": ((6,), torch.int64)}
NUMBERS = torch.arange(36, dtype=torch.bfloat16).view(6, 3, 2, 1)


def fill(growing: Growing) -> None:
    order = torch.tensor([4, 0, 2, 1, 5, 3])  # rows come in any order
    growing.tensors["features"][order] = NUMBERS[order]
    growing.tensors["targets"][:] = torch.arange(6) * 10


def refuse(growing: Growing) -> None:
    raise AssertionError("they are there")


def test_what_was_written_is_read_with_its_bits(tmp_path):
    made = kept(tmp_path, KEY, SHAPES, "the features", {"of": "a test"}, fill)
    found = kept(tmp_path, KEY, SHAPES, "the features", {}, refuse)
    for tensors in (made, found):
        assert torch.equal(tensors["features"], NUMBERS)
        assert tensors["targets"].tolist() == [0, 10, 20, 30, 40, 50]
    raw = np.fromfile(tmp_path / KEY / "features.bin", "<u2").astype("<u4") << 16  # bfloat16: float32's upper half
    assert raw.view("<f4").tolist() == list(range(36))
    assert json.loads((tmp_path / KEY / "header.json").read_text())["facts"] == {"of": "a test"}
    found["targets"][0] = 7  # stays in this process
    assert kept(tmp_path, KEY, SHAPES, "the features", {}, refuse)["targets"][0] == 0


@pytest.mark.parametrize("name", ["features.bin", "targets.bin", "header.json"])
def test_damage_of_any_byte_is_found_and_made_good(tmp_path, name, capsys):
    kept(tmp_path, KEY, SHAPES, "the features", {}, fill)
    path = tmp_path / KEY / name
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DamagedArrays, match=KEY):
            opened(tmp_path / KEY)
    path.write_bytes(content[: len(content) // 2])
    assert torch.equal(kept(tmp_path, KEY, SHAPES, "the features", {}, fill)["features"], NUMBERS)
    assert "computed anew" in capsys.readouterr().err


def test_of_several_that_ask_at_once_one_computes(tmp_path):
    calls: list[int] = []

    def once(growing: Growing) -> None:
        calls.append(1)
        fill(growing)

    def ask(_: int) -> torch.Tensor:
        return kept(tmp_path, KEY, SHAPES, "the features", {}, once)["features"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(16)))
    assert len(calls) == 1
    assert all(torch.equal(answer, NUMBERS) for answer in answers)


def test_what_fails_leaves_nothing_and_what_was_killed_is_swept_up(tmp_path):
    def fail(growing: Growing) -> None:
        raise ValueError("no")

    left = tmp_path / f".{KEY}-killed"
    left.mkdir()
    with pytest.raises(ValueError, match=r"no"):
        kept(tmp_path, KEY, SHAPES, "the features", {}, fail)
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.lock"]


def test_a_disk_that_is_too_small_is_told_with_the_bytes_needed(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(100, 80, 20))
        with pytest.raises(UsageError, match=r"the features need 120 bytes, and .* has 20 free: make room"):
            kept(tmp_path, KEY, SHAPES, "the features", {}, refuse)

    def full(file: int, begin: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunFailed, match=r"the features need 120 bytes, .* choose another transfer.cache_folder"):
        kept(tmp_path, KEY, SHAPES, "the features", {}, refuse)
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def folders(cache: Path) -> set[str]:
    return {path.parent.name for path in cache.glob("*/header.json")}


def test_a_later_run_finds_them_and_any_change_has_others(make, tmp_path, capsys):
    cache = tmp_path / "cache"
    given: dict[str, Any]
    given = {
        "augment": ["normalize"],
        "model": Deep(),
        "run": {"steps": 2, "evaluate_every": "2 steps"},
    }

    def train(name: str, **changed: Any) -> set[str]:
        before = folders(cache)
        make(name, transfer=Head(cache=True, cache_folder=str(cache)), **given | changed).fit()
        return folders(cache) - before

    def alike(name: str, **changed: Any) -> None:
        assert train(name, **changed) == set()

    assert len(train("first")) == 2, "of training and test images"
    alike("again")
    alike("other-rate", optim="adamw", run={"steps": 3, "evaluate_every": "3 steps"})
    assert "computed" not in capsys.readouterr().err.partition("computed")[2].partition("computed")[2]
    assert len(train("weights", run={**given["run"], "seed": 1})) == 2
    assert len(train("images", augment=[])) == 2
    assert len(train("numbers", precision="float64")) == 2
    assert len(train("batch", run={**given["run"], "batch": 64})) == 2
    assert len(train("kernel", kernels="im2col")) == 2
    assert len(train("order", run={**given["run"], "channels_last": True})) == 2
    assert len(train("graph", model=Deep(auxiliary=True))) == 2


def test_another_processor_and_the_deterministic_mode_have_other_keys(monkeypatch):
    options = SimpleNamespace(augment={}, data=SmallData(), precision=Float32(), run=RunOptions(channels_last=False))

    def facts(deterministic: bool = False) -> dict[str, Any]:
        options.run.deterministic = deterministic
        return run_facts(options, {}, torch.device("cpu"))

    keys = [key_of(facts()), key_of(facts(deterministic=True))]
    monkeypatch.setattr("engine.features.key.processor", lambda: "another")
    keys.append(key_of(facts()))
    assert len(set(keys)) == 3


def test_processes_that_share_batches_share_features(tmp_path):
    for plain, quick in together(2, trained_together, tmp_path):
        assert_same(plain, quick)
    assert len(folders(tmp_path / "cache")) == 2
