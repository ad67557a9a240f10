"""Of a block with a record that cannot be read, all others are given: errors are those of single records."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from loading_parts import Files, Noise, Pixels, Slow
from PIL import Image

from engine import Key, Records, UsageError
from engine.blocks import BlockSource
from engine.interfaces import Source
from engine.loader import Layout, Loader, Position
from engine.order import Shuffle

LAYOUT = Layout(torch.device("cpu"))


def loader(source: Source, **settings) -> Loader:
    return Loader(source, {}, Key.of(3), **{"batch": 8, "layout": LAYOUT, **settings})


def test_of_a_block_with_a_bad_record_all_others_are_given():
    """Threads that ask at once have the block tried once; then each gets its own records, or the source's error."""
    inner = Slow(64)
    inner.bad = 40
    source = BlockSource(inner, 32, keep=4)
    with ThreadPoolExecutor(4) as pool:
        asked = {index: pool.submit(source.records, [index, 1]) for index in (33, 39, 40, 41)}
        inner.wanted.set()
        for index, future in asked.items():
            if index == 40:
                with pytest.raises(UsageError, match=r"^photo_40\.jpg cannot be read; delete it$"):
                    future.result(60)
            else:
                assert torch.equal(future.result(60).images, inner.images[[index, 1]])
    assert sum(len(request) == 32 for request in inner.requests) == 2
    inner.bad = -1
    assert torch.equal(source.records([40]).images, inner.images[[40]])


def test_a_failure_ahead_is_told_to_whoever_asks_for_the_record():
    inner = Noise(64, bad=40)
    source = BlockSource(inner, 32, keep=4)
    source.ahead([1])
    assert torch.equal(source.records([33, 3, 63]).images, inner.images[[33, 3, 63]])
    with pytest.raises(UsageError, match=r"photo_40\.jpg"):
        source.records([3, 40])


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("kind", [Noise, Files, Pixels])
def test_only_the_batch_with_a_bad_record_fails_as_in_full_order(kind, threads):
    """The records of sources that give pictures, tensors or files, by blocks and one by one."""
    shuffle = Shuffle("blocks", block=16, mixed=3)
    run = loader(kind(120, bad=77), shuffle=shuffle, threads=threads)
    place = (run._order.records(0) == 77).nonzero().item()
    stream, sound = run.steps(Position()), loader(kind(120), shuffle=shuffle)
    for number in range(place // 8):
        expected = sound.step_at(Position(number, 8 * number)).batches[0].images
        assert torch.equal(next(stream).batches[0].images, expected)
    with pytest.raises(UsageError, match=r"^photo_77\.jpg cannot be read; delete it$"):
        next(stream)
    with pytest.raises(UsageError, match=r"^photo_77\.jpg cannot be read; delete it$"):
        list(loader(kind(120, bad=77), threads=threads).steps(Position()))  # in full order


def test_a_defect_of_a_source_is_raised_by_the_batch_it_concerns():
    class Defective(Noise):
        def records(self, indices) -> Records:
            if 40 in indices:
                raise ZeroDivisionError("a defect of the source")
            return super().records(indices)

    source = BlockSource(Defective(64), 32, keep=4)
    assert torch.equal(source.records([41]).images, source.source.images[[41]])
    with pytest.raises(ZeroDivisionError, match="a defect of the source"):
        source.records([40])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of ten photographs."""
    for number in range(20):
        path = tmp_path / "photos" / "train" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.full((8, 8, 3), 10 * number, dtype=torch.uint8).numpy()).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("kind", ["full", "blocks"])
def test_unreadable_files_are_skipped_or_named_alike_in_either_order(folder, registry, kind, capsys):
    options = registry.entry("data", "folder").options(root=str(folder), size=8)
    bad, gone = folder / "train" / "a" / "06.png", folder / "train" / "b" / "13.png"
    content = bad.read_bytes()
    bad.write_bytes(b"<html>")
    with pytest.raises(UsageError, match=r"has 1 unreadable image: a/06\.png \(not a JPEG or PNG\)"):
        options.build("train")
    options.skip_unreadable = True
    source, shuffle = options.build("train"), Shuffle(kind, block=5, mixed=2)
    assert f"skipping {bad} (not a JPEG or PNG)" in capsys.readouterr().err
    run = loader(source, shuffle=shuffle, batch=19)
    values = next(run.steps(Position())).batches[0].images[:, 0, 0, 0] * 255
    assert sorted(values.round().tolist()) == [10 * number for number in range(20) if number != 6]
    gone.unlink()
    bad.write_bytes(content)  # a source that is open does not look for it
    run = loader(source, shuffle=shuffle, batch=1)
    place = (run._order.records(0) == 9 + 6).nonzero().item()  # nine of class a are before those of class b
    stream = run.steps(Position())
    for _ in range(place):
        next(stream)
    with pytest.raises(UsageError, match=rf"^{gone} cannot be read \(No such file or directory\); was it moved\?$"):
        next(stream)
