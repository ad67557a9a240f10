"""Writes Caffe's binary files for tests: protobuf's wire format, by BVLC's caffe.proto, older forms included."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

V1_TYPES = {"Convolution": 4, "InnerProduct": 14, "ReLU": 18, "Pooling": 17, "Data": 5, "Softmax": 20}


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def whole(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(
    values: np.ndarray, *, legacy: bool = False, packed: bool = True, double: bool = False, parts: int = 1
) -> bytes:
    """Return a BlobProto. legacy: four axes, the missing ones in front; parts: packed numbers in so many pieces."""
    if legacy:
        shape = (1,) * (4 - values.ndim) + values.shape
        head = b"".join(whole(place, size) for place, size in enumerate(shape, 1))
    else:
        head = block(7, block(1, b"".join(varint(size) for size in values.shape)))
    kind, field, wire = ("<f8", 8, 1) if double else ("<f4", 5, 5)
    flat = values.astype(kind).reshape(-1)
    if packed:
        return head + b"".join(block(field, part.tobytes()) for part in np.array_split(flat, parts))
    return head + b"".join(varint(field << 3 | wire) + number.tobytes() for number in flat)


def layer(name: str, kind: str, blobs: Sequence[bytes] = (), extra: bytes = b"") -> bytes:
    return block(100, block(1, name) + block(2, kind) + extra + b"".join(block(7, each) for each in blobs))


def layer_v1(name: str, kind: str, blobs: Sequence[bytes] = ()) -> bytes:
    return block(2, block(4, name) + whole(5, V1_TYPES[kind]) + b"".join(block(6, each) for each in blobs))


def write_caffemodel(path: Path, layers: Mapping[str, tuple[str, Sequence[np.ndarray]]], legacy: bool = False) -> Path:
    """Write layers, name to (type, blobs), with a layer without weights among them."""
    made = [block(1, "net"), layer("data", "Input")]
    made += [layer(name, kind, [blob(each, legacy=legacy) for each in blobs]) for name, (kind, blobs) in layers.items()]
    path.write_bytes(b"".join(made))
    return path


def write_solverstate(path: Path, iteration: int, history: Sequence[np.ndarray]) -> Path:
    path.write_bytes(whole(1, iteration) + block(2, "net.caffemodel") + b"".join(block(3, blob(h)) for h in history))
    return path


def write_mean(path: Path, image: np.ndarray) -> Path:
    """Write a mean.binaryproto as compute_image_mean does."""
    path.write_bytes(blob(image.astype(np.float32), legacy=True))
    return path


def floats(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)
