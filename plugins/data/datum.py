"""Caffe's Datum records, read from protobuf's wire format (caffe.proto; protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

# Numbers of the fields of message Datum.
CHANNELS, HEIGHT, WIDTH, DATA, LABEL, FLOATS, ENCODED = 1, 2, 3, 4, 5, 6, 7
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
HEAD = 64  # bytes that hold any tag with its length

Reader = Callable[[int, int], bytes]


@dataclass(slots=True)
class Datum:
    """One record. data: an image file's bytes if ``encoded``, else uint8 [channels, height, width], blue first."""

    channels: int = 0
    height: int = 0
    width: int = 0
    data: bytes = b""
    label: int | None = None
    encoded: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width

    def pixels(self) -> np.ndarray:
        """Return the raw pixels [channels, height, width]; raises ValueError unless there are as many as it says."""
        count = self.channels * self.height * self.width
        if count == 0 or len(self.data) != count:
            sides = " x ".join(map(str, self.shape))
            raise ValueError(f"it holds {len(self.data)} bytes of pixels, but says that it is {sides}")
        return np.frombuffer(self.data, np.uint8).reshape(self.shape)


def parse(message: bytes) -> Datum:
    """Return the record in ``message``. Raises ValueError, saying why, if it is no Datum, or one without an image."""
    datum = Datum()
    for field, kind, value in _fields(lambda offset, length: message[offset : offset + length], len(message)):
        if field == FLOATS:
            raise ValueError("it holds float_data, and only images of bytes can be read")
        expected = BYTES if field == DATA else VARINT
        if DATA <= field <= ENCODED or CHANNELS <= field <= WIDTH:
            if kind != expected:
                raise ValueError(f"it is no Caffe Datum (field {field} is of another type)")
            if field == DATA:
                datum.data = message[value[0] : value[0] + value[1]]
            else:
                _set(datum, field, value[0])
    if not datum.data:
        raise ValueError("it is no Caffe Datum with an image (it holds no data)")
    return datum


def label_of(read: Reader, length: int) -> int | None:
    """Return the label of a message of ``length`` bytes, of which only what is between the long fields is read."""
    label = None
    for field, kind, value in _fields(read, length):
        if field == LABEL and kind == VARINT:
            label = _signed(value[0])
    return label


def _set(datum: Datum, field: int, value: int) -> None:
    if field == CHANNELS:
        datum.channels = value
    elif field == HEIGHT:
        datum.height = value
    elif field == WIDTH:
        datum.width = value
    elif field == LABEL:
        datum.label = _signed(value)
    else:
        datum.encoded = bool(value)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(read: Reader, length: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Yield number, type and value of each field: (number, 0) of a varint, (offset, length) of bytes."""
    place = 0
    while place < length:
        head = read(place, min(HEAD, length - place))
        start, used = place, 0
        while used < len(head) and (len(head) - used >= 20 or start + len(head) == length):
            tag, used = _varint(head, used)
            field, kind = tag >> 3, tag & 7
            if kind == VARINT:
                value, used = _varint(head, used)
                yield field, kind, (value, 0)
            elif kind == BYTES:
                size, used = _varint(head, used)
                if start + used + size > length:
                    raise ValueError(f"it is truncated: field {field} ends {start + used + size - length} bytes later")
                yield field, kind, (start + used, size)
                used += size
            elif kind in (FIXED32, FIXED64):
                yield field, kind, (start + used, 4 if kind == FIXED32 else 8)
                used += 4 if kind == FIXED32 else 8
            else:
                raise ValueError(f"it is no Caffe Datum (its bytes at {start + used} are no field)")
            if field == 0:
                raise ValueError(f"it is no Caffe Datum (its bytes at {start + used} are no field)")
        place = start + used
    if place > length:
        raise ValueError("it is truncated in its last field")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data) and shift < 64:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
    raise ValueError("it is no Caffe Datum, or truncated (a number does not end)")
