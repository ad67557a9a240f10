"""A checkpoint is the same whoever wrote it: pieces make the whole, and are read in any other pieces."""

from __future__ import annotations

import math
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine import RunFailed, UsageError, checkpoint, manifest
from engine.checkpoint import Checkpoints
from engine.distributed import current
from engine.pieces import Piece, overlap
from engine.stored import stored_files, write_manifest, write_pieces
from engine.testing import together

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets, sizes


@st.composite
def tiled(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box], Box]:
    """A shape, boxes that tile it, cut apart at random, and one more box within it."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 5)) if shape else 0):
        offsets, sizes = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        cut = draw(st.integers(0, sizes[axis]))
        for begin, size in ((0, cut), (cut, sizes[axis] - cut)):
            if size:
                part = list(offsets), list(sizes)
                part[0][axis] += begin
                part[1][axis] = size
                boxes.append((tuple(part[0]), tuple(part[1])))
    begins = tuple(draw(st.integers(0, size - 1)) for size in shape)
    wanted = tuple(draw(st.integers(1, size - begin)) for begin, size in zip(begins, shape, strict=True))
    return shape, draw(st.permutations(boxes)), (begins, wanted)


def sliced(values: np.ndarray, box: Box) -> np.ndarray:
    return values[tuple(slice(begin, begin + size) for begin, size in zip(*box, strict=True))]


@given(tiled())
@settings(max_examples=60, deadline=None)
def test_any_box_is_read_back_from_any_pieces(case):
    import tempfile

    shape, boxes, wanted = case
    whole = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = []
        for rank, box in enumerate(boxes):
            piece = Piece(torch.tensor(sliced(whole, box)), shape, box[0])
            told.append(write_pieces(folder, {"model.safetensors": {"w": piece}}, rank, len(boxes)))
        write_manifest(folder, {}, told)
        stored = stored_files(folder, manifest.verify(folder))["model.safetensors"]
        assert stored.shape("w") == shape
        assert list(stored) == ["w"]
        assert np.array_equal(stored.box("w", *wanted).numpy(), sliced(whole, wanted))
        assert np.array_equal(stored["w"].numpy(), whole)


@given(tiled(), tiled())
@settings(max_examples=60, deadline=None)
def test_where_two_boxes_meet(one, other):
    """Against counting: the places that both boxes have are those that the slices of either name."""
    if len(one[0]) != len(other[0]):
        return
    (begins, sizes), (begins_other, sizes_other) = one[2], other[2]
    bounds = tuple(max(b + s, c + t) for b, s, c, t in zip(begins, sizes, begins_other, sizes_other, strict=True))
    numbers = np.arange(math.prod(bounds)).reshape(bounds)
    first, second = sliced(numbers, one[2]), sliced(numbers, other[2])
    common = np.intersect1d(first, second)
    met = overlap(begins, sizes, begins_other, sizes_other)
    if met is None:
        assert len(common) == 0
    else:
        assert np.array_equal(first[met[0]].ravel(), common)
        assert np.array_equal(second[met[1]].ravel(), common)


def halves(folder: Path, keep: int = 2) -> Path:
    """Write a tensor of 4 rows in two pieces, of which the manifest knows ``keep``."""
    whole = torch.arange(12.0).view(4, 3)
    pieces = [Piece(whole[2 * rank : 2 * rank + 2].clone(), (4, 3), (2 * rank, 0)) for rank in range(2)]
    told = [write_pieces(folder, {"model.safetensors": {"w": piece}}, rank, 2) for rank, piece in enumerate(pieces)]
    write_manifest(folder, {}, told[:keep])
    return folder


def test_a_missing_piece_is_no_zero(tmp_path):
    _, files = checkpoint.load(halves(tmp_path, keep=1))
    with pytest.raises(UsageError, match=f"{tmp_path}: the pieces of 'w' do not make the whole"):
        files["model.safetensors"]["w"]
    assert torch.equal(files["model.safetensors"].box("w", (0, 1), (2, 2)), torch.tensor([[1.0, 2.0], [4.0, 5.0]]))


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_piece_is_named(tmp_path, damage):
    halves(tmp_path)
    path = tmp_path / "model-00002-of-00002.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UsageError, match=path.name):
        checkpoint.load(tmp_path)


def state(step: int) -> dict[str, dict[str, Tensor | Piece]]:
    """Return what this process saves: its rows of one tensor, and, as all do, the whole of another."""
    rank, world = current().rank, current().world
    whole = torch.arange(24.0).view(8, 3) + step
    rows = 8 // world
    piece = Piece(whole[rank * rows : (rank + 1) * rows], (8, 3), (rank * rows, 0))
    return {"model.safetensors": {"sharded": piece, "whole": torch.full((5,), float(step))}}


def save_two(out: Path) -> None:
    checkpoints = Checkpoints(out, 1, False, True)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"from": current().rank}, None)


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.soak), 4])
def test_several_processes_write_what_one_reads(tmp_path, world):
    together(world, save_two, tmp_path)
    (folder,) = manifest.checkpoints(tmp_path)  # one is kept
    facts, files = checkpoint.load(folder)
    pieces = [f"model-{rank + 1:05d}-of-{world:05d}.safetensors" for rank in range(world)]
    assert sorted(facts["files"]) == sorted(["model.safetensors", *pieces])
    assert facts["from"] == 0
    assert list(files) == ["model.safetensors"]
    assert torch.equal(files["model.safetensors"]["sharded"], torch.arange(24.0).view(8, 3) + 2)
    assert torch.equal(files["model.safetensors"]["whole"], torch.full((5,), 2.0))
    assert not list((tmp_path / "checkpoints").glob(".*"))


def fill_disk(out: Path, background: bool) -> list[str]:
    """Save once, then on a disk that is full for rank 1; return what each save said."""
    checkpoints = Checkpoints(out, 9, False, True, background)
    checkpoints.save(1, state(1), {}, None)
    checkpoints.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if current().rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    if background:
        checkpoints.save(2, state(2), {}, None)  # the next one tells
    with pytest.raises(RunFailed) as failed:
        checkpoints.save(2, state(2), {}, None)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpoints.save(3, state(3), {}, None)
    checkpoints.close()
    return [str(failed.value)]


@pytest.mark.parametrize("background", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_disk_that_is_full_for_one_fails_all(tmp_path, background):
    said = together(2, fill_disk, tmp_path, background)
    assert said[0] == said[1]
    assert "step-00000002 could not be written" in said[0][0]
    assert "the newest whole checkpoint is step-00000001" in said[0][0]
    assert [folder.name for folder in manifest.checkpoints(tmp_path)] == ["step-00000003", "step-00000001"]
    for folder in manifest.checkpoints(tmp_path):
        checkpoint.load(folder)


def test_what_is_saved_in_the_background_is_of_its_step(tmp_path, monkeypatch):
    """The tensors change while nothing is written yet; without a copy the later values would be saved."""
    may_write = threading.Event()
    real = checkpoint.write_pieces

    def held(*arguments):
        assert may_write.wait(30)
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "write_pieces", held)
    checkpoints = Checkpoints(tmp_path, 9, False, True, background=True)
    weights, facts = torch.arange(1000.0), {"list": [1]}
    tied = {"a": weights, "b": weights[10:20].view(2, 5)}
    folder = checkpoints.save(7, {"model.safetensors": tied}, facts, None)
    assert not manifest.checkpoints(tmp_path), "training goes on before it is written"
    weights.zero_()
    facts["list"].append(2)
    may_write.set()
    checkpoints.close()
    read, files = checkpoint.load(folder)
    assert torch.equal(files["model.safetensors"]["a"], torch.arange(1000.0))
    assert torch.equal(files["model.safetensors"]["b"], torch.arange(10.0, 20.0).view(2, 5))
    assert read["list"] == [1]
