"""What a JPEG's header says, beside Pillow; and headers that are damaged."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps
from test_jpeg import jpeg, picture

from engine import ops
from engine.decode import decode_whole
from engine.pictures import Pictures

SHORT, LONG = 3, 4


def exif(order: str, orientation: int, kind: int = SHORT) -> bytes:
    """Return EXIF of a tag that says nothing here, and then the orientation (TIFF 6.0)."""
    way = "<" if order == "II" else ">"
    value = struct.pack(f"{way}H", orientation) + b"\0\0" if kind == SHORT else struct.pack(f"{way}I", orientation)
    entries = struct.pack(f"{way}HHII", 0x100, SHORT, 1, 0) + struct.pack(f"{way}HHI", 0x112, kind, 1) + value
    return b"Exif\0\0" + order.encode() + struct.pack(f"{way}HIH", 42, 8, 2) + entries + b"\0\0\0\0"


def xmp(text: str) -> bytes:
    return b"http://ns.adobe.com/xap/1.0/\0<rdf:Description " + text.encode() + b"</rdf:Description>"


def with_segments(data: bytes, *contents: bytes) -> bytes:
    """Return a file with APP1 segments after its first marker."""
    segments = [b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content for content in contents]
    return data[:2] + b"".join(segments) + data[2:]


@pytest.fixture(scope="module")
def plain() -> bytes:
    return jpeg(picture(np.random.default_rng(0), 24, 40), quality=95)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", [SHORT, LONG])
@pytest.mark.parametrize("order", ["II", "MM"])
def test_orientation_is_read_and_applied(plain, orientation, kind, order):
    data = with_segments(plain, exif(order, orientation, kind))
    assert ops.jpeg_header(data) == (24, 40, 3, orientation)
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.array(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.abs(decode_whole(data, 3).astype(int) - expected).max() <= 1
    assert Pictures.of_files([data], 3).sizes.tolist() == [list(expected.shape[:2])]


@pytest.mark.parametrize(
    ("contents", "orientation"),
    [
        ([xmp('tiff:Orientation="6">')], 6),
        ([xmp("><tiff:Orientation>8</tiff:Orientation>")], 8),
        ([xmp('tiff:Orientation="0">')], 1),
        ([xmp("tiff:Orientation")], 1),
        ([xmp('exif:Orientation="6">')], 1),
        ([exif("II", 3), xmp('tiff:Orientation="6">')], 3),
        ([xmp('tiff:Orientation="6">'), exif("MM", 3)], 3),
        ([exif("II", 3), exif("II", 6)], 3),
        ([exif("II", 0), xmp('tiff:Orientation="6">')], 1),
        ([exif("MM", 9)], 1),
        ([b"Exif\0\0"], 1),
        ([b"Exif\0\0no such header"], 1),
        ([exif("II", 6)[:39]], 1),
        ([b"Exif\0\0II*\0\xff\xff\xff\xff"], 1),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
def test_what_is_believed_of_several_words_on_orientation(plain, contents, orientation):
    data = with_segments(plain, *contents)
    assert ops.jpeg_header(data) == (24, 40, 3, orientation)
    with Image.open(io.BytesIO(data)) as stored:
        assert np.array_equal(decode_whole(data, 3), np.array(ImageOps.exif_transpose(stored)))


def test_exif_may_come_after_the_frame_header(plain):
    tables = plain.index(b"\xff\xc4")  # of Huffman, after the frame header
    moved = plain[:tables] + with_segments(b"\xff\xd8", exif("II", 6))[2:] + plain[tables:]
    assert ops.jpeg_header(moved) == (24, 40, 3, 6)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3), ("CMYK", 4)])
def test_size_and_components_are_pillows(progressive, mode, components):
    for size in ((1, 1), (9, 700), (300, 17)):
        data = jpeg(Image.new(mode, size), progressive=progressive)
        assert ops.jpeg_header(data) == (size[1], size[0], components, 1)


def frame_of(data: bytes) -> int:
    return data.index(b"\xff\xc0")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d, at: d[: at + 1] + b"\xc3" + d[at + 2 :], "it is lossless, hierarchical or arithmetically coded"),
        (lambda d, at: d[: at + 1] + b"\xc9" + d[at + 2 :], "it is lossless, hierarchical or arithmetically coded"),
        (lambda d, at: d[: at + 4] + b"\x0c" + d[at + 5 :], "its samples have not 8 bits"),
        (lambda d, at: d[: at + 5] + b"\0\0" + d[at + 7 :], "its size is not in its header"),
        (lambda d, at: d[: at + 2] + b"\0\x05" + d[at + 4 :], "its frame header is too short"),
        (lambda d, at: d[: at + 2] + b"\0\x01" + d[at + 4 :], "a segment is truncated"),
        (lambda d, at: d[:at] + b"ab" + d[at:], "a marker is missing"),
        (lambda d, at: d[:at] + d[at : at + 19] + d[at:], "it has two frame headers"),
        (lambda d, at: d[:at] + d[at + 19 :], "it has no frame header"),
        (lambda d, at: b"", "it is no JPEG"),
    ],
)
def test_what_cannot_be_read_is_said(plain, change, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        ops.jpeg_header(change(plain, frame_of(plain)))


def test_bytes_that_fill_up_before_a_marker_are_passed_over(plain):
    at = frame_of(plain)
    assert ops.jpeg_header(plain[:at] + b"\xff\xff\xff" + plain[at:]) == (24, 40, 3, 1)


def test_truncated_headers_are_refused_wherever_they_end(plain):
    data = with_segments(plain, exif("II", 6))
    for end in range(frame_of(data) + 19):
        with pytest.raises(ValueError, match=r"^(it is no JPEG|it has no frame header|a segment is truncated)$"):
            ops.jpeg_header(data[:end])
    assert ops.jpeg_header(data[: frame_of(data) + 19]) == (24, 40, 3, 6)
