"""Protobuf's wire format and the Caffe messages in it: weights, mean images, solver states. No protobuf needed.

Field numbers are those of BVLC's caffe.proto (2014 to 2020). Nothing is allocated for a length that a file merely
claims: a field that reaches beyond the message it is in ends the reading.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from engine import UsageError

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # kinds of fields
WIDTHS = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
MOST_AXES, MOST_NUMBERS = 32, 2**31 - 1  # Caffe's own limits for a blob

# NetParameter: layers before and after 2014. Then where each kind of layer has its name, type, blobs and parameters.
V1_LAYERS, LAYER = 2, 100
PLACES = {V1_LAYERS: (4, 5, 6, 17), LAYER: (1, 2, 7, 117)}
BATCH_NORM, KEPT = 139, 2  # of a layer: BatchNormParameter, its moving_average_fraction
V0_LAYER = 1  # of a V1 layer: what was before
TRANSPOSE = 6  # InnerProductParameter
SHAPE, DATA, DOUBLE_DATA, DIM = 7, 5, 8, 1  # BlobProto, BlobShape
OLD_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
ITERATION, LEARNED_NET, HISTORY = 1, 2, 3  # SolverState

Value = int | memoryview

V1_TYPES = {
    1: "Accuracy", 2: "BNLL", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout", 7: "EuclideanLoss", 8: "Flatten",
    9: "HDF5Data", 10: "HDF5Output", 11: "Im2col", 12: "ImageData", 13: "InfogainLoss", 14: "InnerProduct", 15: "LRN",
    16: "MultinomialLogisticLoss", 17: "Pooling", 18: "ReLU", 19: "Sigmoid", 20: "Softmax", 21: "SoftmaxWithLoss",
    22: "Split", 23: "TanH", 24: "WindowData", 25: "Eltwise", 26: "Power", 27: "SigmoidCrossEntropyLoss",
    28: "HingeLoss", 29: "MemoryData", 30: "ArgMax", 31: "Threshold", 32: "DummyData", 33: "Slice", 34: "MVN",
    35: "AbsVal", 36: "Silence", 37: "ContrastiveLoss", 38: "Exp", 39: "Deconvolution",
}  # fmt: skip


class Damaged(ValueError):
    """What is no message of this kind; says why, without naming the file."""


@dataclass(frozen=True)
class Blob:
    """Numbers with their shape. values: float32, perhaps the file's own memory. legacy: of always four axes."""

    values: np.ndarray
    legacy: bool


@dataclass(frozen=True)
class StoredLayer:
    """A layer's weights, as a .caffemodel has them. transposed: an inner product's matrix is [inputs, outputs].

    kept: moving_average_fraction of a BatchNorm.
    """

    name: str
    type: str
    blobs: list[Blob] = field(default_factory=list)
    transposed: bool = False
    kept: float = 0.999


@dataclass(frozen=True)
class SolverState:
    """Where Caffe's solver stood, and its history: for SGD the last update of every parameter, in the net's order."""

    iteration: int
    learned_net: str
    history: list[Blob]


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield a message's fields, (number, value), in their order: numbers, or the bytes of all others. Or Damaged."""
    place = 0
    while place < len(data):
        key, place = varint(data, place)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise Damaged(f"byte {place} begins no field")
        if kind == VARINT:
            value, place = varint(data, place)
            yield number, value
            continue
        size = WIDTHS.get(kind, -1)
        if kind == LENGTH:
            size, place = varint(data, place)
        elif size < 0:
            raise Damaged(f"byte {place} begins no field")
        if size > len(data) - place:
            raise Damaged(f"field {number} ends {size - len(data) + place} bytes behind the end: it is truncated")
        yield number, data[place : place + size]
        place += size


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and the place behind it."""
    number = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place
    raise Damaged("a number does not end: it is truncated")


def numbers_of(value: Value) -> Iterator[int]:
    """Yield the whole numbers of a repeated field, signed: one, or packed."""
    if isinstance(value, int):
        yield _signed(value)
        return
    place = 0
    while place < len(value):
        number, place = varint(value, place)
        yield _signed(number)


def _signed(number: int) -> int:
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def text_of(value: Value) -> str:
    """Return a field's text, signs that are no UTF-8 replaced."""
    return bytes(_message(value)).decode("utf-8", "replace")


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise Damaged("a field holds a number instead of bytes")
    return value


def blob_of(value: Value) -> Blob:
    """Return a BlobProto's numbers, packed or not, float or double, in the shape that it says."""
    parts: dict[int, list[memoryview]] = {DATA: [], DOUBLE_DATA: []}
    dims: list[int] = []
    old = dict.fromkeys(OLD_SHAPE, 0)
    shaped = False
    for number, content in fields(_message(value)):
        if number in parts:
            parts[number].append(_message(content))
        elif number == SHAPE:
            shaped = True
            for inner, dimension in fields(_message(content)):
                dims += numbers_of(dimension) if inner == DIM else ()
                if len(dims) > MOST_AXES:
                    raise Damaged(f"a blob has more than {MOST_AXES} axes")
        elif number in old and isinstance(content, int):
            old[number] = _signed(content)
    values = _floats(parts)
    shape = dims if shaped else list(old.values())
    beyond = any(size < 0 for size in shape) or prod(size or 1 for size in shape) > MOST_NUMBERS
    if beyond or prod(shape) != values.size:
        raise Damaged(f"a blob of {' x '.join(map(str, shape)) or 'no axes'} holds {values.size} numbers")
    return Blob(values.reshape(shape), not shaped)


def _floats(parts: dict[int, list[memoryview]]) -> np.ndarray:
    if parts[DOUBLE_DATA]:
        return _joined(parts[DOUBLE_DATA], "<f8").astype(np.float32)
    return _joined(parts[DATA], "<f4")


def _joined(parts: list[memoryview], kind: str) -> np.ndarray:
    content = parts[0] if len(parts) == 1 else b"".join(parts)  # unpacked numbers are a part each
    if len(content) % np.dtype(kind).itemsize:
        raise Damaged(f"a blob's {len(content)} bytes are no whole numbers")
    return np.frombuffer(content, kind)


def layers_of(net: memoryview) -> Iterator[StoredLayer]:
    """Yield the layers of a NetParameter in their order, those without blobs too."""
    for number, content in fields(net):
        if number in PLACES:
            yield _layer(number, _message(content))


def _layer(kind: int, content: memoryview) -> StoredLayer:
    name_at, type_at, blobs_at, product_at = PLACES[kind]
    name, type_, blobs, transposed, kept = "", "", [], False, 0.999
    for number, value in fields(content):
        if number == name_at:
            name = text_of(value)
        elif number == type_at:
            type_ = text_of(value) if kind == LAYER else _v1_type(value)
        elif number == blobs_at:
            try:
                blobs.append(blob_of(value))
            except Damaged as error:
                raise Damaged(f"layer '{name[:60]}': {error}") from error
        elif number == product_at:
            transposed = any(n == TRANSPOSE and v == 1 for n, v in fields(_message(value)))
        elif kind == LAYER and number == BATCH_NORM:
            kept = next((_float(v) for n, v in fields(_message(value)) if n == KEPT), kept)
        elif kind == V1_LAYERS and number == V0_LAYER:
            raise Damaged("its layers are of the format before 2013: convert it with Caffe's upgrade_net_proto_binary")
    return StoredLayer(name, type_, blobs, transposed, kept)


def _float(value: Value) -> float:
    content = bytes(_message(value))
    if len(content) != 4:
        raise Damaged("a field holds something else than a float")
    return float(np.frombuffer(content, "<f4")[0])


def _v1_type(value: Value) -> str:
    return V1_TYPES.get(value, f"number {value}") if isinstance(value, int) else "no number"


@contextmanager
def opened(path: Path, what: str) -> Iterator[memoryview]:
    """Yield a file's bytes, not read before they are looked at; what is within ``with`` must copy what it keeps.

    Raises UsageError naming the file where it cannot be read, or where Damaged is raised within ``with``.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give {what}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path} cannot be read ({reason}): give {what}") from error
    try:
        yield data
    except Damaged as error:
        raise UsageError(f"{path} is no whole {what.partition(' ')[2]} ({error}): fetch it again") from error


def read_blob(path: Path) -> np.ndarray:
    """Return the image in a mean.binaryproto, float32 [channels, height, width]. Raises UsageError naming the file."""
    with opened(path, "a Caffe mean.binaryproto") as data:
        values = blob_of(data).values
        if values.ndim == 4 and len(values) == 1:
            values = values[0]
        if values.ndim != 3 or values.size == 0 or not np.isfinite(values).all():
            raise Damaged(f"it holds {list(values.shape)} numbers, and a mean is [channels, height, width]")
        return values.copy()


def read_solver_state(path: Path) -> SolverState:
    """Return what a .solverstate holds. Raises UsageError naming the file."""
    with opened(path, "a Caffe .solverstate") as data:
        iteration, learned, history = 0, "", []
        for number, value in fields(data):
            if number == ITERATION and isinstance(value, int):
                iteration = _signed(value)
            elif number == LEARNED_NET:
                learned = text_of(value)
            elif number == HISTORY:
                blob = blob_of(value)
                history.append(Blob(blob.values.copy(), blob.legacy))
        if iteration < 0 or not (history or learned):
            raise Damaged("it holds neither history nor a network's name")
        return SolverState(iteration, learned, history)
