"""Freed memory kept by the process: counted in page faults by the system itself, and left alone where it should be."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from engine import kept_memory
from engine.cli import main

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")


@pytest.fixture(autouse=True)
def _untold(monkeypatch):
    """Nobody has told the allocator anything yet, and no user either."""
    monkeypatch.setattr(kept_memory, "_kept", False)
    for name in (*kept_memory.VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


FAULTS = """
import resource
from engine import kept_memory
kept_memory.{}()
import torch
def faults(size):
    torch.zeros(size // 4)  # what it allocates for itself
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(size // 4 - (1 << 18))  # a MiB less: room to align it in the gap, whatever lies beside that
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(96 << 20), kept_memory.remark() != "")
"""


def faults(turn: str) -> tuple[int, str]:
    """Return the faults of 95 MiB where 96 were freed, in a process of its own, and whether it is told of."""
    code = FAULTS.format(turn)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, told = done.stdout.split()
    return int(count), told


@GLIBC
def test_kept_memory_is_allocated_again_without_page_faults(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    count, told = faults("keep")
    assert (count < 100, told) == (True, "True")
    count, told = faults("give_back")
    assert (count > 100, told) == (True, "False")  # 24320 pages of 4 KiB; not where the system makes all huge


@GLIBC
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "1000000"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_what_the_user_has_exported_goes_first(monkeypatch, variable, value):
    assert kept_memory.available()
    monkeypatch.setenv(variable, value)
    assert not kept_memory.available()
    kept_memory.keep()
    assert (kept_memory.kept(), kept_memory.remark()) == (False, "")


def test_elsewhere_nothing_is_touched_and_nothing_is_told(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(kept_memory, "_set", lambda thresholds: pytest.fail("this allocator has no thresholds"))
    kept_memory.keep()
    assert (kept_memory.kept(), kept_memory.remark()) == (False, "")


@pytest.mark.parametrize("keep", [True, False])
def test_the_option_decides_and_the_run_tells(monkeypatch, tmp_path, capsys, keep):
    told: list[dict[int, int]] = []
    monkeypatch.setattr(kept_memory, "available", lambda: True)
    monkeypatch.setattr(kept_memory, "_set", lambda thresholds: told.append(thresholds) is None)
    monkeypatch.setattr(kept_memory, "_kept", True)  # as the run of a sweep before may have left it
    monkeypatch.chdir(tmp_path)
    wish = f"run.keep_memory={str(keep).lower()}"
    monkeypatch.setattr(sys, "argv", ["engine", "train", "data.size=8", "run.steps=1", "run.batch=64", wish])
    main()
    assert told == [dict.fromkeys(kept_memory.USUAL, kept_memory.NEVER) if keep else kept_memory.USUAL]
    assert ("run.keep_memory=false" in capsys.readouterr().err) is keep
