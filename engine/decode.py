"""Turning the bytes of JPEG and PNG files into pixels."""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from engine import ops
from engine.errors import UsageError

FORMATS = ("JPEG", "PNG")
MODES = {1: "L", 3: "RGB"}
# What Pillow raises for damaged files; its parsers let some of their own troubles through.
DAMAGED = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
# Warnings of libjpeg after which it made nothing up: csrc/cpu/jpeg.cpp passes over the same.
HARMLESS = re.compile(
    "extraneous bytes before marker|unknown JFIF revision|Unknown Adobe color transform|"
    "Invalid SOS parameters for sequential|Inconsistent progression sequence"
)


def decode(data: bytes, shape: tuple[int, int, int]) -> Tensor:
    """Return a JPEG's or PNG's pixels, upright, as uint8 of ``shape`` = (1 or 3 channels, height, width).

    The image is scaled so that it just covers (height, width), bilinear and antialiased, and cropped to the
    middle. Its EXIF orientation is applied. Transparency is laid over white; CMYK is converted without a colour
    profile; 16-bit gray is scaled to 8 bits; grayscale is 0.299 R + 0.587 G + 0.114 B. A JPEG four times too large
    or more is first reduced by 2, 4 or 8 while decoding. Upright JPEG goes through the decoder that batches do. Raises
    UsageError, saying why, for a file that is damaged or of another format; a JPEG that a batch's decoder would make up
    a part of is damaged.
    """
    channels, height, width = shape
    found = _jpeg_pixels(data, channels, (height, width))
    if found is not None:
        return torch.from_numpy(fit(found[0], (height, width), found[1])).permute(2, 0, 1).contiguous()
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _require_checksums(image, data)
            orientation = _orientation(image)
            size = (height, width) if orientation in SIDEWAYS else (width, height)
            # Twice what is needed leaves the antialiasing to the resize.
            reduced = image.draft(None, (2 * size[0], 2 * size[1]))
            # Where a reduced side is no whole number, the last pixels are partly padding.
            sides = reduced[1][2:] if reduced else image.size
            colours = _in_mode(image, MODES[channels])
        fitted = colours.resize(size, Image.Resampling.BILINEAR, box=_middle(sides, size))
    except DAMAGED as error:
        raise UsageError(f"cannot be decoded ({_reason(error)}); delete or replace it") from error
    upright = fitted.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else fitted
    pixels = torch.from_numpy(np.array(upright)).view(height, width, channels)
    return pixels.permute(2, 0, 1).contiguous()


def decode_whole(data: bytes, channels: int, shorter_side: int | None = None) -> np.ndarray:
    """Return all pixels of a JPEG or PNG, upright, as uint8 [height, width, channels], 1 or 3 channels.

    Where ``shorter_side`` is given, a larger image is reduced to it (``reduced``). Colours and errors are those of
    ``decode``, except that a JPEG of which a decoder would have made up a part is refused.
    """
    found = _jpeg_pixels(data, channels)
    if found is not None:
        return reduced(found[0], shorter_side)
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _require_checksums(image, data)
            orientation = _orientation(image)
            colours = _in_mode(image, MODES[channels])
    except DAMAGED as error:
        raise UsageError(f"cannot be decoded ({_reason(error)}); delete or replace it") from error
    upright = colours.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else colours
    return reduced(np.array(upright).reshape(upright.height, upright.width, channels), shorter_side)


def _jpeg_pixels(
    data: bytes, channels: int, wanted: tuple[int, int] | None = None
) -> tuple[np.ndarray, tuple[float, float]] | None:
    """Return an upright JPEG's pixels, gray or of three colours, and its height and width in them; None: for Pillow.

    Where ``wanted`` is given, a height and width, they may be reduced to no less than twice that. Where a reduced side
    is no whole number, the last pixels are partly padding.
    """
    try:
        height, width, components, orientation = ops.jpeg_header(data)
    except ValueError:
        return None
    if components not in (1, 3) or orientation != 1 or height * width > ops.MOST_PIXELS:
        return None
    try:
        if not ops.jpeg_decodes():
            pixels = _simplejpeg_pixels(data, channels, components)
            return None if pixels is None else (pixels, (height, width))
        times = min(height // (2 * wanted[0]), width // (2 * wanted[1])) if wanted else 1
        eighths = next((eighths for eighths in (1, 2, 4) if 8 // eighths <= times), 8)
        pixels = ops.decode_jpeg(data, channels, eighths=eighths)[0].numpy()
        return pixels, (height * eighths / 8, width * eighths / 8)
    except ValueError as error:
        raise UsageError(f"cannot be decoded ({_reason(error)}); delete or replace it") from error


def _simplejpeg_pixels(data: bytes, channels: int, components: int) -> np.ndarray | None:
    """Return the pixels of a JPEG where this build has no libjpeg-turbo; None for what Pillow has to decode.

    Raises ValueError for damage.
    """
    import simplejpeg

    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB" if max(channels, components) == 3 else "GRAY")
    except ValueError as error:  # libjpeg's last warning counts as one too
        if HARMLESS.search(str(error)):
            return None
        raise
    return pixels if pixels.shape[2] == channels else np.array(_image(pixels).convert("L"))[:, :, None]


def reduced(pixels: np.ndarray, shorter_side: int | None) -> np.ndarray:
    """Return uint8 [height, width, 1 or 3], made smaller so that the shorter side has ``shorter_side`` pixels.

    Bilinear and antialiased; the longer side is rounded to whole pixels. A small enough image is returned as it is.
    """
    height, width, channels = pixels.shape
    shorter = min(height, width)
    if shorter_side is None or shorter <= shorter_side:
        return pixels
    size = (round(width * shorter_side / shorter), round(height * shorter_side / shorter))
    resized = _image(pixels).resize(size, Image.Resampling.BILINEAR)
    return np.array(resized).reshape(size[1], size[0], channels)


def fit(pixels: np.ndarray, size: tuple[int, int], sides: tuple[float, float] | None = None) -> np.ndarray:
    """Return uint8 [height, width, 1 or 3] scaled so that it just covers ``size``, and cropped to the middle of it.

    size: (height, width); sides: the image's own, where ``pixels`` have a part of a pixel more. Bilinear and
    antialiased: what ``decode`` does with the pixels of a file.
    """
    wanted = (size[1], size[0])
    height, width = sides or pixels.shape[:2]
    box = _middle((width, height), wanted)
    resized = _image(pixels).resize(wanted, Image.Resampling.BILINEAR, box=box)
    return np.array(resized).reshape(*size, pixels.shape[2])


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


def fault_of(path: Path) -> str:
    """Return why a file's header is not that of a JPEG or PNG, "" if it is; the pixels are not looked at."""
    try:
        if path.stat().st_size == 0:
            return "empty"
        with Image.open(path, formats=FORMATS):
            return ""
    except DAMAGED as error:
        return _reason(error)


def _require_checksums(image: Image.Image, data: bytes) -> None:
    """Raise ValueError if a chunk of a PNG is not what its CRC-32 says: Pillow does not look at those of pixels."""
    place, view = 8, memoryview(data)
    while image.format == "PNG" and place + 12 <= len(data):  # what is cut short, Pillow refuses
        end = place + 8 + int.from_bytes(view[place : place + 4], "big")
        if end + 4 <= len(data) and zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError("the checksum of a chunk does not match")
        place = end + 4


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, struct.error):
        return 1  # as viewers do: what cannot be read asks for no rotation, and the pixels may be sound


def _middle(sides: tuple[float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest box of ``size``'s proportions in the middle of an image: left, upper, right, lower."""
    scale = min(sides[0] / size[0], sides[1] / size[1])
    width, height = min(sides[0], size[0] * scale), min(sides[1], size[1] * scale)
    left, upper = (sides[0] - width) / 2, (sides[1] - height) / 2
    return left, upper, left + width, upper + height


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the image as "L" or "RGB", where Pillow's own conversion would clip or uncover hidden colours."""
    if image.mode.startswith("I"):  # 16-bit gray
        scaled = np.asarray(image).astype(np.float32) * (255 / 65535)
        image = Image.fromarray(scaled.round().astype(np.uint8))
    elif image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    return image.convert(mode)


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a JPEG or PNG"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
