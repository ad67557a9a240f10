"""The weights in a .caffemodel file, read without Caffe or a protobuf library.

A .caffemodel is one NetParameter of BVLC Caffe's caffe.proto in protobuf's wire format. The numbers below are that
file's field numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # wire types
V1_LAYERS, LAYER = 2, 100  # NetParameter: the layers of files before and after 2014
PLACES = {V1_LAYERS: (4, 6), LAYER: (1, 7)}  # where each kind of layer has its name and its blobs
NUM, CHANNELS, HEIGHT, WIDTH, DATA, SHAPE, DIMENSIONS = 1, 2, 3, 4, 5, 7, 1  # BlobProto; BlobShape

Value = int | memoryview


def read_weights(path: Path) -> dict[str, list[np.ndarray]]:
    """Return the blobs, float32, of every layer that has some, by the layer's name; of V1 and of new layers.

    Blobs have the shape that the file says; the older files' (num, channels, height, width) all four of them.
    """
    weights: dict[str, list[np.ndarray]] = {}
    for number, layer in fields(memoryview(path.read_bytes())):
        if number not in PLACES:
            continue
        name_at, blobs_at = PLACES[number]
        assert isinstance(layer, memoryview)
        content = list(fields(layer))
        (name,) = (bytes(value).decode() for field, value in content if field == name_at)
        blobs = [blob_of(value) for field, value in content if field == blobs_at]
        if blobs:
            weights[name] = blobs
    return weights


def blob_of(data: Value) -> np.ndarray:
    """Return a BlobProto's numbers in their shape."""
    parts: list[np.ndarray] = []
    shape: list[int] = []
    old = {NUM: 0, CHANNELS: 0, HEIGHT: 0, WIDTH: 0}
    assert isinstance(data, memoryview)
    for field, value in fields(data):
        if field == DATA:  # packed, or one float each
            parts.append(np.frombuffer(value, "<f4"))
        elif field == SHAPE:
            shape = [size for dimension, value in fields(value) for size in sizes_of(value) if dimension == DIMENSIONS]
        elif field in old:
            old[field] = value
    numbers = np.concatenate(parts)
    return numbers.reshape(shape or list(old.values())).copy()


def sizes_of(value: Value) -> list[int]:
    """Return the whole numbers of a repeated field: one, or packed."""
    if isinstance(value, int):
        return [value]
    found, place = [], 0
    while place < len(value):
        size, place = varint(value, place)
        found.append(size)
    return found


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield a message's fields, (number, value), in their order; a value of fixed width as its bytes."""
    place = 0
    while place < len(data):
        key, place = varint(data, place)
        kind = key & 7
        if kind == VARINT:
            value, place = varint(data, place)
            yield key >> 3, value
            continue
        length = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind, 0)
        if kind == LENGTH:
            length, place = varint(data, place)
        elif not length:
            raise ValueError(f"wire type {kind} at byte {place}: this is no protobuf message")
        if place + length > len(data):
            raise ValueError(f"field {key >> 3} at byte {place} reaches beyond its message: the file is cut short")
        yield key >> 3, data[place : place + length]
        place += length


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, least first, and the place after it."""
    number = shift = 0
    while True:
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
