"""JPEG decoding beside Pillow's, parts beside wholes, and files that are damaged; headers have tests of their own."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from dc_jpeg import blocks, dc_jpeg
from PIL import Image

from engine import UsageError, ops
from engine.decode import decode_whole

needs_libjpeg = pytest.mark.skipif(not ops.jpeg_decodes(), reason="built without libjpeg-turbo's headers")
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0", "4:1:1")
# What Pillow does not write: 4:4:0, 4:1:0 and others, and gray with more than one block in an MCU.
FACTORS = [[first, (1, 1), (1, 1)] for first in [(1, 2), (4, 1), (1, 4), (4, 2), (2, 4), (3, 1)]] + [[(2, 2)], [(1, 2)]]


@pytest.fixture(params=[pytest.param("libjpeg-turbo", marks=needs_libjpeg), "simplejpeg"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Decode whole files in the way of a build with the headers, then of one without."""
    monkeypatch.setattr(ops, "jpeg_decodes", lambda: request.param == "libjpeg-turbo")
    return request.param


def picture(rng: np.random.Generator, height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Return something with smooth and with sharp places, as photographs have."""
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.paste((255, 0, 40), (width // 3, height // 3, width // 2 + 1, height // 2 + 1))
    return image.convert(mode)


def jpeg(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def kinds() -> Iterator[bytes]:
    """Yield every way that Pillow writes JPEG in, with a picture of an odd size."""
    rng = np.random.default_rng(0)
    for subsampling, progressive, restart, mode in itertools.product(
        (*SUBSAMPLINGS, "keep_rgb"), (0, 1), (0, 3), ("RGB", "L")
    ):
        if mode == "L" and subsampling != "4:4:4":
            continue
        height, width = (int(side) for side in rng.integers(9, 150, 2))
        options = {"quality": int(rng.integers(30, 97)), "progressive": bool(progressive)}
        if mode == "RGB":
            options |= {"keep_rgb": True} if subsampling == "keep_rgb" else {"subsampling": subsampling}
        options |= {"restart_marker_blocks": restart} if restart else {}
        yield jpeg(picture(rng, height, width, mode), **options)


def other_kinds() -> Iterator[bytes]:
    """Yield files of sampling factors that Pillow does not write."""
    rng = np.random.default_rng(0)
    for factors in FACTORS:
        height, width = (int(side) for side in rng.integers(60, 150, 2))
        sizes = blocks(factors, height, width)
        yield dc_jpeg([rng.integers(-128, 128, size) for size in sizes], factors, height, width)


def pillows(data: bytes, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert(mode)).reshape(image.height, image.width, -1)


@needs_libjpeg
def test_whole_files_decode_to_pillows_pixels():
    for data in kinds():
        assert np.array_equal(ops.decode_jpeg(data, 3)[0].numpy(), pillows(data, "RGB"))
        assert np.array_equal(ops.decode_jpeg(data, 1)[0].numpy(), pillows(data, "L"))


@pytest.mark.parametrize("channels", [1, 3])
def test_either_decoder_gives_pillows_pixels(decoder, channels):
    for data in kinds():
        found = decode_whole(data, channels)
        assert found.flags.c_contiguous
        assert found.flags.writeable
        assert np.abs(found.astype(int) - pillows(data, "L" if channels == 1 else "RGB")).max() <= 1


def test_the_levels_of_blocks_are_decoded():
    """The encoder of these tests is held against arithmetic: a level of DC is a level of gray."""
    levels = np.arange(-60, 60, 10).reshape(3, 4)
    data = dc_jpeg([levels], [(1, 1)], 20, 30)
    assert np.array_equal(decode_whole(data, 1)[:, :, 0], np.kron(levels + 128, np.ones((8, 8)))[:20, :30])


@needs_libjpeg
@pytest.mark.parametrize("eighths", [1, 2, 4])
def test_smaller_sizes_are_those_of_pillows_draft(eighths):
    compared = 0
    for data in kinds():
        image = Image.open(io.BytesIO(data))
        if image.draft("RGB", (max(1, image.width * eighths // 8), max(1, image.height * eighths // 8))) is None:
            continue
        expected, found = np.array(image.convert("RGB")), ops.decode_jpeg(data, 3, eighths=eighths)[0].numpy()
        if expected.shape == found.shape:  # of the smallest pictures Pillow takes a larger size
            compared += 1
            assert np.array_equal(found, expected)
    assert compared > 10


@needs_libjpeg
@pytest.mark.parametrize("eighths", [1, 2, 4, 8])
@pytest.mark.parametrize("files", [kinds, other_kinds])
def test_a_part_is_the_same_pixels_as_the_whole(eighths, files):
    rng = np.random.default_rng(eighths)
    for data, channels in itertools.product(files(), (1, 3)):
        height, width, _, _ = ops.jpeg_header(data)
        whole, _ = ops.decode_jpeg(data, channels, eighths=eighths)
        for _ in range(6):
            first, left = int(rng.integers(height)), int(rng.integers(width))
            rows = (first, int(rng.integers(first, height)) + 1)
            columns = (left, int(rng.integers(left, width)) + 1)
            part, (top, begin) = ops.decode_jpeg(data, channels, eighths=eighths, rows=rows, columns=columns)
            assert torch.equal(part, whole[top : top + part.shape[0], begin : begin + part.shape[1]])
            # What was asked for is in it, in pixels of the smaller size.
            assert top * 8 <= rows[0] * eighths
            assert begin * 8 <= columns[0] * eighths
            assert (top + part.shape[0]) * 8 >= min(rows[1] * eighths, whole.shape[0] * 8)
            assert (begin + part.shape[1]) * 8 >= min(columns[1] * eighths, whole.shape[1] * 8)


@needs_libjpeg
def test_real_photographs_decode_to_pillows_pixels(real_data):
    files = sorted(real_data("imagenet-sample").rglob("*.JPEG"))
    plain = 0
    for path in files:
        data = path.read_bytes()
        with Image.open(path) as image:
            upright = image.getexif().get(0x112, 1) in (0, 1)  # two of them say 0, which is none
            assert ops.jpeg_header(data)[:2] == (image.height, image.width)
            assert (ops.plain_jpeg(data) is not None) == upright
            if upright:
                plain += 1
                assert np.array_equal(ops.decode_jpeg(data, 3)[0].numpy(), np.array(image.convert("RGB")))
    assert (len(files), plain) == (173, 172)  # one is turned


@needs_libjpeg
@pytest.mark.parametrize(
    "wrong", [{"channels": 2}, {"eighths": 3}, {"rows": (5, 5)}, {"rows": (0, 21)}, {"columns": (-1, 4)}]
)
def test_parts_that_there_cannot_be_are_refused(wrong):
    data = jpeg(picture(np.random.default_rng(0), 20, 30))
    with pytest.raises(ValueError, match=r"choose 1 or 3|are not in an image of 20x30"):
        ops.decode_jpeg(data, **{"channels": 3, **wrong})


def test_what_is_no_plain_jpeg_is_left_to_pillow(decoder):
    image = picture(np.random.default_rng(0), 20, 30)
    png = io.BytesIO()
    image.save(png, "PNG")
    cmyk = jpeg(image.convert("CMYK"))
    for data in (png.getvalue(), cmyk):
        assert ops.plain_jpeg(data) is None
        assert np.array_equal(decode_whole(data, 3), pillows(data, "RGB"))
    assert ops.jpeg_header(cmyk)[2] == 4
    with pytest.raises(ValueError, match="it is no JPEG"):
        ops.jpeg_header(png.getvalue())


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_file_is_refused(decoder, share, progressive):
    data = jpeg(picture(np.random.default_rng(1), 120, 160), quality=95, progressive=progressive)
    cut = data[: int(len(data) * share)]
    for content in (cut, cut + b"\xff\xd9"):  # Pillow decodes the second, and makes the rest up
        with pytest.raises(UsageError, match=r"^cannot be decoded \(.*[Pp]remature end.*\); delete or replace it$"):
            decode_whole(content, 3)


@pytest.mark.parametrize("kind", ["bytes before the end", "revision of JFIF"])
def test_a_file_that_is_odd_and_shows_all_is_decoded(decoder, kind):
    """libjpeg warns of these too; files that cameras wrote are among them."""
    data = jpeg(picture(np.random.default_rng(1), 40, 50))
    odd = data[:-2] + b"some bytes" + data[-2:] if kind == "bytes before the end" else data[:11] + b"\x07" + data[12:]
    assert np.array_equal(decode_whole(odd, 3), decode_whole(data, 3))


@needs_libjpeg
def test_rows_that_are_there_are_given_and_others_refused():
    data = jpeg(picture(np.random.default_rng(1), 160, 120), quality=95)
    cut = data[: len(data) * 2 // 3]
    part, (top, left) = ops.decode_jpeg(cut, 3, rows=(0, 40))
    assert np.array_equal(part.numpy(), pillows(data, "RGB")[top : top + 40, left : left + part.shape[1]])
    with pytest.raises(ValueError, match=r"(?i)premature end"):
        ops.decode_jpeg(cut, 3, rows=(100, 160))


def test_a_picture_too_large_to_be_meant_is_refused(decoder):
    data = jpeg(picture(np.random.default_rng(0), 20, 30))
    size = data.index(b"\xff\xc0") + 5
    data = data[:size] + b"\x40\x00\x40\x00" + data[size + 4 :]  # 16384 x 16384
    assert ops.jpeg_header(data)[:2] == (16384, 16384)
    assert ops.plain_jpeg(data) is None
    with pytest.raises(UsageError, match=r"^cannot be decoded \(.*268435456 pixels"):
        decode_whole(data, 3)
    with pytest.raises(ValueError, match=r"too many pixels|cannot decode JPEG"):
        ops.decode_jpeg(data, 3, rows=(0, 1), columns=(0, 1))


@needs_libjpeg
@pytest.mark.parametrize("order", ["engine.ops PIL.Image", "PIL.Image engine.ops"])
def test_pillows_own_library_and_this_one_live_in_one_process(order):
    program = f"""
import importlib, io, sys
for name in {order.split()}: importlib.import_module(name)
from PIL import Image
from engine import ops
data = sys.stdin.buffer.read()
for _ in range(2):  # each after the other
    image = Image.open(io.BytesIO(data)).convert("RGB")
    again = io.BytesIO()
    image.save(again, "JPEG")
    pixels, _ = ops.decode_jpeg(data, 3)
    assert image.tobytes() == pixels.numpy().tobytes()
"""
    data = jpeg(picture(np.random.default_rng(0), 40, 50))
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Return a file with some bytes changed, or a piece cut out or off."""
    content = bytearray(data)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(content[: rng.integers(len(content))])
    if kind == 1:
        first = int(rng.integers(len(content)))
        return bytes(content[:first] + content[first + int(rng.integers(1, 200)) :])
    limit = len(content) if kind == 2 else min(700, len(content))  # headers more often than chance would
    for _ in range(int(rng.integers(1, 12))):
        content[rng.integers(limit)] = rng.integers(256)
    return bytes(content)


def survive(count: int, seed: int) -> int:
    """Decode damaged files, whole and in part; return how many were refused, every one with a reason."""
    rng, sound, refused = np.random.default_rng(seed), [*kinds(), *other_kinds()], 0
    for number in range(count):
        data = damaged(rng, sound[number % len(sound)])
        try:
            height, width, _, _ = ops.jpeg_header(data)
            if height * width > 4_000_000:  # sound, and slow
                continue
            rows, columns = (height // 3, height // 2 + 1), (width // 3, width // 2 + 1)
            part, _ = ops.decode_jpeg(data, 3, eighths=int(rng.choice([1, 2, 4, 8])), rows=rows, columns=columns)
            assert part.dtype == torch.uint8
            whole, _ = ops.decode_jpeg(data, 3)
            assert whole.shape == (height, width, 3)
        except ValueError as error:
            refused += bool(str(error))
    return refused


@needs_libjpeg
def test_damaged_files_are_refused_or_decoded_and_never_crash(capfd):
    assert 100 < survive(300, 0) < 300
    assert capfd.readouterr() == ("", "")  # libjpeg says nothing by itself


@needs_libjpeg
@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_twenty_thousand_damaged_files():
    assert 5_000 < survive(20_000, 1) < 20_000
