"""JPEG files as the extension reads them: their headers, and the pixels of any part of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from engine.ops.extension import _cpu
from engine.ops.images import address_of

MOST_PIXELS = 178_956_970  # what Pillow refuses as a decompression bomb


@cache
def jpeg_decodes() -> bool:
    """Return whether this build decodes JPEG itself: libjpeg-turbo's headers were there."""
    return _cpu.jpeg_decodes()


def jpeg_header(data: bytes) -> tuple[int, int, int, int]:
    """Return a file's height, width, components (1: gray, 3: colour) and orientation by EXIF, else XMP (1 to 8).

    Raises ValueError with the reason for what is no JPEG of 8 bits, baseline or progressive.
    """
    return _cpu.jpeg_header(address_of(data), len(data))


def plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Return height and width of what native code can decode as it stands, else None.

    That is an upright JPEG, gray or of three colours, where this build decodes.
    """
    if not jpeg_decodes():
        return None
    try:
        height, width, components, orientation = jpeg_header(data)
    except ValueError:
        return None  # Pillow says what it is, or what is wrong with it
    plain = components in (1, 3) and orientation == 1 and height * width <= MOST_PIXELS
    return (height, width) if plain else None


def decode_jpeg(
    data: bytes,
    channels: int,
    *,
    eighths: int = 8,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
) -> tuple[Tensor, tuple[int, int]]:
    """Return pixels uint8 [h, w, channels] of a JPEG decoded at ``eighths`` / 8 of its size, and where they begin.

    rows, columns: (first, last + 1) of the full-sized image; given are all pixels that lie there in part at least.
    channels: 3, or 1: of a colour file 0.299 R + 0.587 G + 0.114 B. Raises ValueError with libjpeg's words for a
    damaged file, of which it would have made up a part.
    """
    height, width, _, _ = jpeg_header(data)
    window = [*(rows or (0, height)), *(columns or (0, width))]
    if channels not in (1, 3) or eighths not in (1, 2, 4, 8):
        raise ValueError(f"{channels} channels and {eighths} eighths: choose 1 or 3, and 1, 2, 4 or 8")
    if not (0 <= window[0] < window[1] <= height and 0 <= window[2] < window[3] <= width):
        raise ValueError(f"rows {window[:2]} and columns {window[2:]} are not in an image of {height}x{width}")
    pixels, (top, left, count, across) = _cpu.decode_jpeg(address_of(data), len(data), channels, eighths, window)
    part = torch.frombuffer(pixels, dtype=torch.uint8).view(count, across, channels)
    first, last = window[2] * eighths // 8, -(-window[3] * eighths // 8)  # beside them lie some that are not exact
    first = min(first, left + across - 1)
    return part[:, first - left : last - left], (top, first)
