"""What ``engine verify`` says of data files that are missing or cut short: a line for each, not for each record."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from packed import pack, photographs, raw

from engine.plugins.stores import layout, verify
from engine.plugins.stores.verify import faults

EACH = 192  # bytes of a record of 8x8 pixels in colour


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    """Four data files of six records each."""
    pack(tmp_path / "train", raw(24), shard_size=6 * EACH)
    return tmp_path / "train"


@pytest.mark.parametrize(
    ("length", "lost"),
    [
        (0, "records 6 to 11 are lost"),
        (EACH - 1, "records 6 to 11 are lost"),
        (2 * EACH + 5, "records 8 to 11 are lost"),
        (4 * EACH, "records 10 to 11 are lost"),
        (6 * EACH - 1, "record 11 is lost"),
    ],
)
def test_a_file_that_is_cut_short_is_one_line(pixels, length, lost):
    path, told = pixels / "data-00001.bin", []
    os.truncate(path, length)
    assert list(faults(pixels)) == [f"{path} ends after {length} of {6 * EACH} bytes: {lost}; {layout.REPAIR}"]
    verify._in_shard(pixels, layout.read_meta(pixels), index_of(pixels), 1, told.append)
    assert sum(told) == 6  # so that a bar gets to its end


def index_of(folder: Path) -> layout.Index:
    return layout.read_index(folder, layout.read_meta(folder))


def test_a_missing_file_is_one_line(pixels):
    (pixels / "data-00002.bin").unlink()
    line = f"{pixels}/data-00002.bin cannot be opened (No such file or directory): records 12 to 17 are lost"
    assert list(faults(pixels)) == [f"{line}; {layout.REPAIR}"]


def test_records_before_the_cut_are_still_compared(pixels):
    path = pixels / "data-00000.bin"
    data = bytearray(path.read_bytes()[: 3 * EACH + 1])
    data[EACH + 7] ^= 1
    path.write_bytes(data)
    assert [line.partition(";")[0] for line in faults(pixels)] == [
        f"{path} ends after {3 * EACH + 1} of {6 * EACH} bytes: records 3 to 5 are lost",
        f"{path}: record 1 is damaged: its checksum does not match",
    ]


def test_image_files_of_many_lengths(tmp_path):
    folder = tmp_path / "train"
    pack(folder, photographs(), "encoded", shard_size=6000)
    offsets, firsts = (array.tolist() for array in (index_of(folder).offsets, index_of(folder).firsts))
    path, first, last = folder / "data-00001.bin", firsts[1], firsts[2]
    whole = path.read_bytes()
    for row in range(first, last):  # cut within each record
        path.write_bytes(whole[: offsets[row + 1] - offsets[first] - 1])
        lost = f"records {row} to {last - 1} are lost" if row < last - 1 else f"record {row} is lost"
        (line,) = faults(folder)
        assert line.endswith(f" of {len(whole)} bytes: {lost}; {layout.REPAIR}")


def test_where_nobody_knows_which_records_are_lost(pixels):
    (pixels / layout.OFFSETS).unlink()
    os.truncate(pixels / "data-00001.bin", 100)
    (pixels / "data-00003.bin").unlink()
    assert [line.removeprefix(f"{pixels}/").partition(";")[0] for line in faults(pixels)] == [
        f"{layout.OFFSETS} cannot be read (No such file or directory)",
        f"data-00001.bin ends after 100 of {6 * EACH} bytes",
        "data-00003.bin cannot be opened (No such file or directory)",
    ]


def test_a_file_that_is_cut_while_it_is_read(pixels, monkeypatch):
    os.truncate(pixels / "data-00001.bin", 100)
    monkeypatch.setattr(verify.os, "fstat", lambda file: SimpleNamespace(st_size=6 * EACH))
    assert list(faults(pixels)) == [f"{pixels}/data-00001.bin was truncated while it was read; {layout.REPAIR}"]
