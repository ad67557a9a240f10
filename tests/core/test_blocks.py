"""A source read in blocks gives what the source gives, in as few requests as there are blocks."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
import torch
from loading_parts import Files, Noise, Slow, augmentations

from engine import Key, UsageError
from engine.blocks import BlockSource
from engine.interfaces import Pictures, Source
from engine.loader import Layout, Loader, Position
from engine.options import Data
from engine.order import Shuffle
from engine.pictures import ADDRESS, BYTES, CHECKSUM, FILE, OFFSET
from engine.testing import check_source

LAYOUT = Layout(torch.device("cpu"))


def loader(source: Source, **settings) -> Loader:
    return Loader(source, augmentations(source), Key.of(3), **{"batch": 8, "layout": LAYOUT, **settings})


@pytest.fixture
def store(engine, tmp_path, registry) -> Data:
    """A store of the 1,437 training digits, 8x8 pixels, in one data file."""
    code, _, told = engine("pack", "data=digits", "data.size=8", "out=packed", "splits=[train]")
    assert code == 0, told
    return registry.entry("data", "store").options(root=str(tmp_path / "packed"))


@pytest.fixture
def reads(monkeypatch) -> list[tuple[int, int, int]]:
    """What is read with ``os.preadv``: descriptor, offset, bytes."""
    found = []
    real = os.preadv

    def preadv(file, buffers, offset):
        found.append((file, offset, sum(len(buffer) for buffer in buffers)))
        return real(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return found


def test_a_source_in_blocks_keeps_the_contract():
    check_source(BlockSource(Noise(50), 16, keep=2))


@pytest.mark.parametrize("kind", [Noise, Files])
def test_records_are_those_of_the_source_whatever_is_kept(kind):
    source, plain = BlockSource(kind(50), 16, keep=2), kind(50)
    for indices in ([49, 0, 17, 17, 33, 1], [5], [48, 32, 16, 0], []):
        mine, theirs = source.records(indices), plain.records(indices)
        assert mine.encoding == theirs.encoding
        assert torch.equal(mine.targets, theirs.targets)
        assert (
            torch.equal(mine.images, theirs.images)
            if isinstance(mine.images, torch.Tensor)
            else mine.images == theirs.images
        )
    assert source.name_of(7) == "photo_7.jpg"


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_each_block_is_one_request_an_epoch(threads):
    source, epochs = Noise(120), 3
    shuffle = Shuffle("blocks", block=16, mixed=2)  # 7 blocks of 16 and one of 8
    run = loader(source, shuffle=shuffle, threads=threads, prefetch=2)
    source.requests.clear()  # those of the statistics
    for _ in islice(run.steps(Position()), epochs * run.steps_per_epoch):
        pass
    blocks = Counter(tuple(request) for request in source.requests)
    assert set(blocks) == {tuple(range(first, min(first + 16, 120))) for first in range(0, 120, 16)}
    assert min(blocks.values()) >= epochs
    ahead = sum(blocks.values()) - epochs * 8
    assert ahead <= 3 * shuffle.mixed, "what is read ahead: the window that steps are prepared in, and the next ones"


def test_single_steps_do_not_read_blocks():
    source = Noise(120)
    run = loader(source, shuffle=Shuffle("blocks", block=16, mixed=2))
    source.requests.clear()  # those of the statistics
    run.example()
    run.step_at(Position())
    assert max(map(len, source.requests)) == 8


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_are_those_of_single_records_in_the_same_order(threads):
    shuffle = Shuffle("blocks", block=16, mixed=3)
    run = loader(Noise(120), shuffle=shuffle, threads=threads)
    alone = loader(Noise(120), shuffle=shuffle)
    for step in islice(run.steps(Position()), 40):
        other = alone.step_at(Position(step.end.step - 1, step.end.sample - 8))
        assert torch.equal(step.batches[0].images, other.batches[0].images)
        assert torch.equal(step.batches[0].targets, other.batches[0].targets)


def test_threads_that_ask_at_once_have_a_block_read_once():
    inner = Slow(64)
    source = BlockSource(inner, 32, keep=4)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(source.records, [index, 63 - index]) for index in range(6)]
        inner.wanted.set()
        for index, future in enumerate(asked):
            assert torch.equal(future.result().images, inner.images[[index, 63 - index]])
    assert sorted(map(len, inner.requests)) == [32, 32]


def test_no_more_blocks_are_kept_than_was_said_and_none_that_is_used_up():
    inner = Noise(160)
    source = BlockSource(inner, 16, keep=3)
    for first in range(0, 160, 16):  # one record of each of ten blocks
        source.records([first])
    assert len(inner.requests) == 10
    for first in (128, 144, 112):  # the last three are there
        source.records([first])
    assert len(inner.requests) == 10
    source.records([96])
    assert len(inner.requests) == 11
    source.records(list(range(96, 112)))  # used up: 17 of 16
    source.records([96])
    assert len(inner.requests) == 12


def test_a_block_of_a_store_is_one_read(store, reads, registry):
    """Pixels of consecutive records lie one after the other: one preadv gets all of them."""
    plain = store.build("train")
    source = BlockSource(store.build("train"), 128, keep=20)
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0))
    for rows in order.split(64):
        pictures, targets = source.pictures(rows)
        there, theirs = plain.pictures(rows)
        assert torch.equal(targets, theirs)
        assert torch.equal(pictures.table[:, BYTES:], there.table[:, BYTES:]), "sizes and checksums are kept"
        assert (pictures.table[:, ADDRESS] != 0).all()
    assert len(reads) == -(-len(plain) // 128) == 12
    assert {size for _, _, size in reads} == {128 * 64, (len(plain) % 128) * 64}


def test_steps_from_blocks_of_a_store_are_those_without(store, reads):
    shuffle = Shuffle("blocks", block=100, mixed=4)
    alone = loader(store.build("train"), shuffle=shuffle, batch=64)
    run = loader(store.build("train"), shuffle=shuffle, batch=64, threads=2)
    reads.clear()  # those of the statistics
    for step in islice(run.steps(Position()), run.steps_per_epoch):
        other = alone.step_at(Position(step.end.step - 1, step.end.sample - 64))
        assert torch.equal(step.batches[0].images, other.batches[0].images)
    assert 15 <= len(reads) <= 15 + 3 * shuffle.mixed  # 15 blocks an epoch, and what is read ahead


def test_a_damaged_record_in_a_block_is_named_and_only_it(store, tmp_path):
    source = store.build("train")
    run = loader(source, shuffle=Shuffle("blocks", block=128, mixed=2), batch=8)
    (row,) = source.pictures(torch.tensor([130]))[0].table
    data = next((tmp_path / "packed" / "train").glob("data-*.bin"))
    content = bytearray(data.read_bytes())
    content[int(row[OFFSET])] ^= 1
    data.write_bytes(content)
    place = (run._order.records(0) == 130).nonzero().item()
    stream = run.steps(Position())
    for _ in range(place // 8):
        next(stream)
    with pytest.raises(UsageError, match=r"data-00000\.bin: record 130 .*checksum"):
        next(stream)


class Truncated(Source):
    """Images of 12 bytes each in a file that is shorter than it should be, with another gap in the middle."""

    classes, shape, fingerprint = ("a",), (3, 2, 2), "truncated"

    def __init__(self, path: Path, offsets: list[int]) -> None:
        self.file = path.open("rb")
        self.offsets = torch.tensor(offsets)

    def __len__(self) -> int:
        return len(self.offsets)

    def pictures(self, indices):
        table = torch.zeros(len(indices), 8, dtype=torch.int64)
        table[:, FILE], table[:, OFFSET], table[:, BYTES] = self.file.fileno(), self.offsets[indices], 12
        table[:, CHECKSUM], table[:, 6:] = -1, 2
        return Pictures(table, 3, [self]), torch.zeros(len(indices), dtype=torch.int64)


def test_what_a_file_does_not_give_stays_in_it(tmp_path, reads):
    """Two stretches: records 0 to 2, and 3 to 6 behind a gap, of which 5 is cut and 6 is missing."""
    path = tmp_path / "images"
    path.write_bytes(bytes(range(86)))
    source = BlockSource(Truncated(path, [0, 12, 24, 40, 52, 64, 76]), 100, keep=2)
    table = source.pictures(torch.arange(7))[0].table
    assert (table[:, ADDRESS] != 0).tolist() == [True] * 6 + [False]
    assert table[6, OFFSET] == 76
    assert table[6, FILE] != 0
    assert reads[0][1:] == (0, 36)
    assert reads[1][1:] == (40, 48)
    run = Loader(Truncated(path, [76, 64]), {}, Key.of(0), batch=2, layout=LAYOUT, shuffle=Shuffle("blocks"))
    with pytest.raises(UsageError, match=r"record 0 .*the file was truncated while it was in use"):
        next(run.steps(Position()))
