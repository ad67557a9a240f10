"""CRC-32C against its RFC and another library."""

from __future__ import annotations

import google_crc32c
import numpy as np
import pytest

from engine import ops


@pytest.mark.parametrize(
    ("data", "sum_of_it"),
    [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E),
     (bytes(range(31, -1, -1)), 0x113FDB5C), (b"", 0)],
)  # fmt: skip
def test_the_examples_of_rfc_3720(data, sum_of_it):
    assert ops.crc32c(data) == sum_of_it


def test_all_lengths_and_alignments():
    data = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8)
    for start in range(9):
        for length in (*range(70), 1023, 1024, 3071, 3072, 3073, 6143, 6144, 12_345, 19_990):
            part = data[start : start + length]
            assert ops.crc32c(part) == google_crc32c.value(part.tobytes()), (start, length)


def test_arrays_that_are_not_dense_are_taken_in_their_order():
    data = np.arange(600, dtype=np.uint16).reshape(20, 30)
    assert ops.crc32c(data[::2, ::3]) == google_crc32c.value(np.ascontiguousarray(data[::2, ::3]).tobytes())
