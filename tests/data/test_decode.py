"""Decoding against Pillow's own conversions, numpy and torch's antialiased resize."""

import csv
import io
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from engine import UsageError, ops
from engine.decode import decode, decode_whole, fault_of, fit, reduced

ORIENTATION = 0x0112


def packed(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(7 * x + 3 * y), np.cos(5 * y), np.sin(9 * x * y)]
    return np.stack([127.5 + 120 * wave for wave in waves], -1).astype(np.uint8)


def decoded(data: bytes, channels: int, height: int, width: int) -> np.ndarray:
    """Return the decoded pixels as [height, width] or [height, width, 3]."""
    tensor = decode(data, (channels, height, width))
    assert tensor.shape == (channels, height, width)
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    array = tensor.permute(1, 2, 0).numpy()
    return array[..., 0] if channels == 1 else array


def test_pixels_at_the_stored_size_are_exact():
    colours, gray = noise(9, 13), noise(9, 13, 1)
    assert np.array_equal(decoded(packed(Image.fromarray(colours), "PNG"), 3, 9, 13), colours)
    assert np.array_equal(decoded(packed(Image.fromarray(gray), "PNG"), 1, 9, 13), gray)
    jpeg = packed(Image.fromarray(colours), "JPEG")
    assert np.array_equal(decoded(jpeg, 3, 9, 13), np.asarray(Image.open(io.BytesIO(jpeg))))


def test_gray_becomes_three_equal_channels_and_colour_becomes_luma():
    gray, colours = noise(8, 8, 1), noise(8, 8)
    assert np.array_equal(decoded(packed(Image.fromarray(gray), "PNG"), 3, 8, 8), np.stack([gray] * 3, -1))
    luma = colours @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decoded(packed(Image.fromarray(colours), "PNG"), 1, 8, 8) - luma).max() <= 1


def test_one_bit_images():
    bits = noise(8, 8, 1) > 127
    assert np.array_equal(decoded(packed(Image.fromarray(bits), "PNG"), 1, 8, 8), bits * 255)


def test_palettes():
    image = Image.fromarray(noise(16, 16)).quantize(30)
    assert np.array_equal(decoded(packed(image, "PNG"), 3, 16, 16), np.asarray(image.convert("RGB")))


def test_alpha_is_laid_over_white():
    pixels = noise(8, 8, 4)
    pixels[:4, :, 3] = 0
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    result = decoded(packed(Image.fromarray(pixels), "PNG"), 3, 8, 8)
    assert np.abs(result - expected).max() <= 1
    assert (result[:4] == 255).all()


def test_transparency_without_an_alpha_channel():
    image = Image.fromarray(noise(8, 8)).quantize(8)
    clear = int(np.asarray(image)[0, 0])
    indices = np.asarray(image)
    result = decoded(packed(image, "PNG", transparency=clear), 3, 8, 8)
    expected = np.where((indices == clear)[..., None], 255, np.asarray(image.convert("RGB")))
    assert np.array_equal(result, expected)
    gray_alpha = noise(8, 8, 2)
    alpha = gray_alpha[..., 1] / 255
    over_white = gray_alpha[..., 0] * alpha + 255 * (1 - alpha)
    assert np.abs(decoded(packed(Image.fromarray(gray_alpha, "LA"), "PNG"), 1, 8, 8) - over_white).max() <= 1


def test_cmyk():
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, :8, 0] = 255  # cyan
    inks[:, 8:, 3] = 255  # black
    result = decoded(packed(Image.fromarray(inks, "CMYK"), "JPEG", quality=100), 3, 16, 16)
    assert np.abs(result[:, :6].astype(int) - [0, 255, 255]).max() <= 3
    assert result[:, 10:].max() <= 3


def test_sixteen_bit_gray_is_scaled_not_clipped():
    values = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    values[0, :3] = 0, 256, 65535
    result = decoded(packed(Image.fromarray(values), "PNG"), 1, 8, 8)
    assert np.abs(result - values / 257).max() <= 0.5 + 1e-4
    assert result[0, :3].tolist() == [0, 1, 255]


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation):
    stored, exif = noise(6, 10), Image.Exif()
    exif[ORIENTATION] = orientation
    expected = UPRIGHT[orientation](stored)
    data = packed(Image.fromarray(stored), "PNG", exif=exif)
    assert np.array_equal(decoded(data, 3, *expected.shape[:2]), expected)


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_turned_jpeg_matches_pillow_also_when_reduced(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = packed(Image.fromarray(smooth(400, 640)), "JPEG", exif=exif)
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decoded(data, 3, 640, 400), np.asarray(whole))
    small = ImageOps.fit(whole, (32, 48), Image.Resampling.BILINEAR)
    assert np.abs(decoded(data, 3, 48, 32).astype(int) - np.asarray(small)).max() <= 6


def test_exif_that_cannot_be_read_asks_for_no_rotation():
    pixels = noise(6, 10)
    plain = packed(Image.fromarray(pixels), "JPEG")
    for exif in (b"Exif\0\0no such header", b"Exif\0\0", b"Exif\0\0II*\0"):
        data = packed(Image.fromarray(pixels), "JPEG", exif=exif)
        assert np.array_equal(decoded(data, 3, 6, 10), decoded(plain, 3, 6, 10))


def test_scaling_agrees_with_torchs_antialiased_resize():
    pixels = noise(96, 96)
    for side in (24, 37, 96, 130):
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        reference = torch.nn.functional.interpolate(tensor, size=(side, side), mode="bilinear", antialias=True)
        result = decode(packed(Image.fromarray(pixels), "PNG"), (3, side, side))
        assert (result - reference[0]).abs().max() <= 1.01


@pytest.mark.parametrize(("stored", "size", "whole", "corner"), [
    ((64, 96), (16, 16), (16, 24), (0, 4)),
    ((96, 64), (16, 16), (24, 16), (4, 0)),
    ((60, 90), (40, 20), (40, 60), (0, 20)),
    ((8, 12), (40, 40), (40, 60), (0, 10)),
])  # fmt: skip
def test_the_image_just_covers_the_shape_and_its_middle_is_kept(stored, size, whole, corner):
    pixels = noise(*stored)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(tensor, size=whole, mode="bilinear", antialias=True)[0]
    middle = resized[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    result = decode(packed(Image.fromarray(pixels), "PNG"), (3, *size))
    assert (result - middle).abs().max() <= 1.01


def test_a_large_jpeg_reduced_while_decoding_stays_close_to_the_full_decode():
    data = packed(Image.fromarray(smooth(1200, 1600)), "JPEG", quality=95)
    full = ImageOps.fit(Image.open(io.BytesIO(data)).convert("RGB"), (48, 48), Image.Resampling.BILINEAR)
    difference = decoded(data, 3, 48, 48).astype(int) - np.asarray(full)
    assert np.abs(difference).max() <= 4


@pytest.mark.parametrize(("height", "width"), [(333, 517), (801, 402), (97, 203), (1000, 1000)])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGB", 1), ("L", 1), ("L", 3)])
def test_a_jpeg_is_reduced_as_pillow_reduces_it(height, width, mode, channels):
    """By the decoder of batches, which is not Pillow's: the same sizes, and the same part of a last pixel left out."""
    data = packed(Image.fromarray(smooth(height, width)).convert(mode), "JPEG", quality=90)
    for size in (24, 48, 101):
        with Image.open(io.BytesIO(data)) as image:
            _, (_, _, across, down) = image.draft(None, (2 * size, 2 * size)) or (None, (0, 0, *image.size))
            colours = image.convert("L" if channels == 1 else "RGB")
        side = min(across, down)
        left, top = (across - side) / 2, (down - side) / 2
        box = (left, top, left + side, top + side)
        expected = np.asarray(colours.resize((size, size), Image.Resampling.BILINEAR, box=box)).astype(int)
        apart = np.abs(decoded(data, channels, size, size) - expected)
        assert apart.max() <= (1 if ops.jpeg_decodes() else 4)  # without that decoder, reduced from all pixels


def test_a_jpeg_that_a_decoder_would_make_up_a_part_of_is_refused():
    """Its end is lost and the mark of the end is there: Pillow fills in gray and says nothing, batches are refused."""
    data = packed(Image.fromarray(noise(64, 64)), "JPEG")
    cut = data[: len(data) // 2] + b"\xff\xd9"
    assert Image.open(io.BytesIO(cut)).convert("RGB").size == (64, 64)
    for side in (8, 64, 100):
        with pytest.raises(UsageError, match=r"^cannot be decoded \(.*[Pp]remature end.*\); delete or replace it$"):
            decode(cut, (3, side, side))


def test_a_camera_file_of_several_pictures_gives_the_first():
    first, second = (smooth(64, 64)[:, ::step] for step in (1, -1))
    others = [Image.fromarray(second)]
    data = packed(Image.fromarray(first), "MPO", save_all=True, append_images=others, quality=95)
    assert np.abs(decoded(data, 3, 64, 64).astype(int) - first).mean() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0, 0.05, 0.3, 0.6, 0.95])
def test_truncated_files_are_refused(kind, share):
    data = packed(Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(UsageError, match=r"^cannot be decoded \(.+\); delete or replace it$"):
        decode(data[: int(len(data) * share)], (3, 64, 64))


@pytest.mark.parametrize("kind", ["GIF", "BMP", None], ids=str)
def test_other_formats_are_refused(kind):
    data = packed(Image.fromarray(noise(8, 8)), kind) if kind else b"<html>not found</html>"
    with pytest.raises(UsageError, match=re.escape("cannot be decoded (not a JPEG or PNG)")):
        decode(data, (3, 8, 8))


def test_a_picture_too_large_to_be_meant_is_refused_by_its_header(tmp_path):
    data = bytearray(packed(Image.fromarray(noise(8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)  # IHDR: width and height, then its checksum
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(UsageError, match=r"^cannot be decoded \(.*3600000000 pixels"):
        decode(bytes(data), (3, 8, 8))
    (tmp_path / "huge.png").write_bytes(data)
    assert "3600000000 pixels" in fault_of(tmp_path / "huge.png")


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
def test_damaged_bytes_are_decoded_or_refused_but_nothing_else():
    rng, outcomes = np.random.default_rng(0), set()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    files = [packed(Image.fromarray(noise(24, 32)), kind, exif=exif) for kind in ("JPEG", "PNG")]
    for _ in range(600):
        data = bytearray(files[rng.integers(2)])
        for place in rng.integers(0, rng.choice([64, 256, len(data)]), 4):
            data[place % len(data)] = rng.integers(256)
        try:
            outcomes.add(tuple(decode(bytes(data), (3, 16, 16)).shape))
        except UsageError:
            outcomes.add("refused")
    assert outcomes == {(3, 16, 16), "refused"}


def test_the_real_gray_and_turned_images(real_data):
    root = real_data("imagenet-sample")
    rows = list(csv.DictReader((root / "labels.csv").open()))
    gray = [row for row in rows if row["mode"] == "L"]
    turned = [row for row in rows if row["exif_orientation"] not in ("", "1")]
    assert (len(rows), len(gray), len(turned)) == (173, 23, 3)
    for row in gray + turned:
        data = (root / row["file"]).read_bytes()
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        result = decoded(data, 3, upright.height, upright.width)
        assert np.array_equal(result, np.asarray(upright))
        if row in gray:
            assert (result == result[..., :1]).all()
        if row in turned and int(row["exif_orientation"]) >= 5:
            assert upright.size == Image.open(io.BytesIO(data)).size[::-1]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_whole_image_is_what_decoding_to_its_own_size_gives(channels, orientation):
    """``decode`` itself is held against Pillow and numpy above."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    sides = (31, 20) if orientation >= 5 else (20, 31)
    wide = Image.fromarray(np.arange(620, dtype=np.uint16).reshape(20, 31) * 105)
    images = [(Image.fromarray(smooth(20, 31)).convert(mode), "PNG") for mode in ("L", "RGB", "RGBA", "LA", "P")]
    images += [(Image.fromarray(smooth(20, 31)).convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")]
    images[2][0].putalpha(Image.fromarray(noise(20, 31, 1)))
    for image, kind in [*images, (wide, "PNG")]:
        data = packed(image, kind, exif=exif)
        whole = decode_whole(data, channels)
        assert whole.shape == (*sides, channels)
        assert whole.dtype == np.uint8
        assert whole.flags.c_contiguous
        assert whole.flags.writeable
        assert np.array_equal(whole, decode(data, (channels, *sides)).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("data", [b"", b"<html>", packed(Image.fromarray(noise(40, 40)), "JPEG")[:-900]])
def test_the_whole_of_a_damaged_file_is_refused(data):
    with pytest.raises(UsageError, match=r"^cannot be decoded \(.+\); delete or replace it$"):
        decode_whole(data, 3)


@pytest.mark.parametrize(
    ("height", "width", "shorter_side", "expected"),
    [
        (40, 60, 20, (20, 30)),
        (61, 40, 20, (30, 20)),
        (40, 60, 40, (40, 60)),
        (40, 60, 99, (40, 60)),
        (9, 50, 1, (1, 6)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_shorter_side_is_reduced_and_never_enlarged(height, width, shorter_side, expected, channels):
    pixels = noise(height, width, channels).reshape(height, width, channels)
    result = reduced(pixels, shorter_side)
    assert result.shape == (*expected, channels)
    image = Image.fromarray(pixels.squeeze()).resize(expected[::-1], Image.Resampling.BILINEAR)
    assert np.array_equal(result, np.asarray(image).reshape(result.shape))
    assert reduced(pixels, None) is pixels


@pytest.mark.parametrize("size", [(8, 8), (30, 12), (64, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fitting_is_pillows(size, channels):
    pixels = noise(25, 33, channels).reshape(25, 33, channels)
    expected = ImageOps.fit(Image.fromarray(pixels.squeeze()), size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(fit(pixels, size).astype(int) - np.asarray(expected).reshape(*size, channels)).max() <= 1
