"""A JPEG encoder of a page: baseline, every block of one level, with whatever sampling factors (ITU-T T.81)."""

from __future__ import annotations

import struct

import numpy as np


def dc_jpeg(levels: list[np.ndarray], factors: list[tuple[int, int]], height: int, width: int) -> bytes:
    """Return a file of as many components as ``levels``: a level, -128 to 127, for each block of 8x8 samples.

    factors: of each component, across and down. levels: int arrays [rows, columns] of at least as many blocks as the
    component has in whole MCUs (``blocks``).
    """
    frame = struct.pack(">BHHB", 8, height, width, len(levels))
    scan = bytes([len(levels)])
    for number, (across, down) in enumerate(factors, 1):
        frame += bytes([number, across << 4 | down, 0])
        scan += bytes([number, 0])
    parts = [
        b"\xff\xd8",
        segment(0xDB, bytes([0]) + bytes([8] * 64)),  # a step of DC is a level
        segment(0xC0, frame),
        segment(0xC4, bytes([0x00, 0, 0, 0, 12] + [0] * 12) + bytes(range(12))),  # DC: category n is the code n, 4 bits
        segment(0xC4, bytes([0x10, 1] + [0] * 15) + b"\0"),  # AC: the end of a block is the code 0, 1 bit
        segment(0xDA, scan + bytes([0, 63, 0])),
        entropy_coded(levels, factors, height, width),
        b"\xff\xd9",
    ]
    return b"".join(parts)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def mcus(factors: list[tuple[int, int]], height: int, width: int) -> tuple[int, int]:
    """Return how many MCUs there are down and across."""
    across, down = (8 * max(factor[axis] for factor in factors) for axis in (0, 1))
    return -(-height // down), -(-width // across)


def blocks(factors: list[tuple[int, int]], height: int, width: int) -> list[tuple[int, int]]:
    """Return how many rows and columns of blocks each component has."""
    rows, columns = mcus(factors, height, width)
    return [(rows * down, columns * across) for across, down in factors]


def entropy_coded(levels: list[np.ndarray], factors: list[tuple[int, int]], height: int, width: int) -> bytes:
    rows, columns = mcus(factors, height, width)
    bits, before = [], [0] * len(levels)
    for mcu in range(rows * columns):
        for component, (across, down) in enumerate(factors):
            for block in range(across * down):
                row = mcu // columns * down + block // across
                column = mcu % columns * across + block % across
                level = int(levels[component][row, column])
                difference, before[component] = level - before[component], level
                category = abs(difference).bit_length()
                value = difference if difference >= 0 else difference + (1 << category) - 1
                bits.append(f"{category:04b}" + (f"{value:0{category}b}" if category else "") + "0")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
