"""``engine bench machine``: figures that follow from known times, tables beside JSON, and a disk left as it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from engine import ConvSpec, RunFailed, UsageError
from engine.ops import NATIVE, register
from engine.plugins.jobs import bench_machine, ceilings, disk
from engine.plugins.kernels.compiled import CompiledKernel

CPU = torch.device("cpu")
IMPLICIT, NAIVE = CompiledKernel("implicit"), CompiledKernel("naive")
TINY = bench_machine.Effort((32, 64), (32,), ((1, 8, 8),), 0.001, 1 << 20, 1, 2)


@pytest.fixture
def engine(engine, monkeypatch):
    """Return a function that runs the quick job on tiny sizes in this process, in tmp_path."""
    monkeypatch.setattr(bench_machine, "QUICK", TINY)
    monkeypatch.setattr(bench_machine, "largest_cache", lambda: 0)
    return lambda *words: engine("bench", "machine", "quick=true", *words)


@pytest.fixture
def millisecond(monkeypatch):
    """Let every call be made once and seem to take a millisecond."""
    for kernel in (IMPLICIT, NAIVE):
        register(kernel)

    def race(calls, *_, **__):
        for function in calls.values():
            function()
        return {name: [1.0] for name in calls}

    monkeypatch.setattr(ceilings, "race", race)


def test_all_figures_as_tables_and_as_json(engine, tmp_path):
    code, out, err = engine("json=figures.json")
    assert code == 0, err
    found = json.loads((tmp_path / "figures.json").read_text())
    figures = found["figures"]
    parts = {name.partition(".")[0]: figure["unit"] for name, figure in figures.items()}
    assert {"gemm": "GFLOP/s", "conv3x3": "GFLOP/s", "memory": "GB/s", "disk": "MB/s", "call": "us"}.items() <= (
        parts.items()
    )
    for name, figure in figures.items():
        assert 0 < figure["low"] <= figure["value"] <= figure["high"], name
        shown = f"{name} {figure['value']:.4g} ({figure['low']:.4g} .. {figure['high']:.4g}) {figure['unit']}"
        assert f"{shown} {figure['note']}".strip() in " ".join(out.split())
    assert {"gemm.cpu.64.torch", "gemm.cpu.64.implicit", "memory.small.copy", "disk.write", "disk.read"} <= set(figures)
    for key, value in found["machine"].items():
        assert f"{key} {value}" in " ".join(out.split())
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def values(figures) -> dict[str, float]:
    return {figure.name: figure.spread.median for figure in figures}


def test_a_product_of_n_by_n_counts_2_n_cubed(millisecond):
    assert values(ceilings.gemm(CPU, (32, 100), IMPLICIT, 1)) == pytest.approx(
        {
            "gemm.cpu.32.torch": 2 * 32**3 * 1e-6, "gemm.cpu.32.implicit": 2 * 32**3 * 1e-6,
            "gemm.cpu.100.torch": 2 * 100**3 * 1e-6, "gemm.cpu.100.implicit": 2 * 100**3 * 1e-6,
        }
    )  # fmt: skip


def test_a_convolution_counts_what_the_definition_does(millisecond):
    spec = ConvSpec(2, 4, 6, 6, 4, (3, 3), padding=(1, 1), channels_last=True)
    found = values(ceilings.convolution(spec, [NATIVE, NAIVE], 1))
    name = "conv3x3.cpu.2x4x6x6"
    flop = 2 * (2 * 4 * 6 * 6) * (4 * 9)
    assert found == pytest.approx({f"{name}.native": flop * 1e-6, f"{name}.best": flop * 1e-6})


def test_bytes_are_counted_as_stream_does(millisecond, monkeypatch):
    monkeypatch.setattr(ceilings.huge_pages, "available", lambda: False)
    assert values(ceilings.memory(4_000_000, 1)) == pytest.approx(
        {"memory.small.read": 4, "memory.small.copy": 8, "memory.small.triad": 12, "memory.small.first_touch": 4}
    )
    copied = values(ceilings.copies(CPU, 4_000_000, 1))
    assert copied.pop("copy.gpu.copy") == pytest.approx(8)
    assert list(copied.values()) == pytest.approx([4] * 4)


def test_a_call_is_a_share_of_the_calls_timed_together(millisecond):
    assert list(values(ceilings.op_calls(1)).values()) == pytest.approx([1000 / ceilings.CALLS] * 3)


def test_products_that_would_take_too_long_are_left_out(monkeypatch):
    slow = {"torch": [200.0], "implicit": [100.0]}
    monkeypatch.setattr(ceilings, "race", lambda calls, *_, **__: {name: slow[name] for name in calls})
    sizes = [name.split(".")[2] for name in values(ceilings.gemm(CPU, (32, 64, 128), IMPLICIT, 1))]
    assert sizes == ["32", "32"]  # 64 is expected to take 1.6 s


def test_a_gpus_figure_is_set_beside_the_cpus():
    spread = ceilings.Spread(1, 2, 3)
    cpu = {"gemm.cpu.64.torch": ceilings.Figure("gemm.cpu.64.torch", ceilings.Spread(0.1, 0.5, 1), "GFLOP/s")}
    figure = ceilings.Figure("gemm.cuda.64.torch", spread, "GFLOP/s")
    assert bench_machine.beside_cpu(figure, cpu).note == "4.0 x the CPU's"
    assert bench_machine.beside_cpu(ceilings.Figure("copy.gpu.copy", spread, "GB/s"), cpu).note == ""


def test_tensors_exceed_the_caches_and_leave_memory_free(monkeypatch):
    monkeypatch.setattr(bench_machine, "largest_cache", lambda: 100 << 20)
    monkeypatch.setattr(bench_machine, "kibibytes", lambda *_: 64 << 20)  # 64 GiB
    assert bench_machine.affordable(64 << 20) == 400 << 20
    monkeypatch.setattr(bench_machine, "kibibytes", lambda *_: 1 << 20)
    assert bench_machine.affordable(64 << 20) == (1 << 30) // 16


def test_the_disk_is_written_and_read_in_full(tmp_path, monkeypatch):
    written, read, names = [], [], []

    def counted(real, counts):
        def work(*given):
            counts.append(real(*given))
            names.extend(tmp_path.iterdir())
            return counts[-1]

        return work

    monkeypatch.setattr(disk.os, "pwrite", counted(os.pwrite, written))
    monkeypatch.setattr(disk.os, "preadv", counted(os.preadv, read))
    rates, told = disk.measure_disk(tmp_path, 6, rounds=2, seconds=60)
    assert (sum(written), sum(read)) == (2 * 6 << 20, 2 * 6 << 20)
    assert names == []  # the file has no name while it is there
    assert set(rates) == {"write", "read"}
    assert told.startswith(disk.file_system(tmp_path))


def test_without_direct_access_the_cache_is_dropped_before_reading(tmp_path, monkeypatch):
    order = []

    def refuse(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(
        disk.tempfile,
        "mkstemp",
        lambda **where: (real_open(where["dir"] / "f", os.O_RDWR | os.O_CREAT), where["dir"] / "f"),
    )
    real_open = os.open
    monkeypatch.setattr(disk.os, "open", refuse)
    monkeypatch.setattr(disk.os, "posix_fadvise", lambda *given: order.append(given[1:]))
    _, told = disk.measure_disk(tmp_path, 1, rounds=2, seconds=60)
    assert order == [(0, 0, os.POSIX_FADV_DONTNEED)] * 2
    assert "posix_fadvise" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["pwrite", "fsync", "preadv"])
def test_a_failing_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(disk.os, failing, fail)
    with pytest.raises(RunFailed, match=r"No space left on device"):
        disk.measure_disk(tmp_path, 1, rounds=1, seconds=60)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_in_memory_is_said_to_be_no_disk(monkeypatch):
    assert disk.file_system(Path("/proc")) == "proc"
    monkeypatch.setattr(disk, "file_system", lambda folder: "tmpfs")
    assert "this is no disk" in disk._told(Path("/x"), direct=True)


def test_no_room_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100 << 20}))
    disk.require_room(tmp_path, 50)
    with pytest.raises(UsageError, match=r"has 100 MiB free.*size=51 MiB"):
        disk.require_room(tmp_path, 51)


BAD = {
    "no folder": (["folder=nowhere"], "folder=nowhere: no such folder"),
    "no room": (["size=1000000000"], "size=1000000000 MiB"),
    "no size": (["size=0"], "size=0: must be at least 1"),
    "no such device": (["run.device=cuda:99"], "run.device=cuda:99"),
    "file in no folder": (["json=nowhere/x.json"], "json=nowhere/x.json"),
}


@pytest.mark.parametrize(("words", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_answered_in_one_line(engine, tmp_path, words, expected):
    code, out, err = engine(*words)
    assert (code, out) == (2, "")
    assert expected in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
