"""The blobs of a .caffemodel as Google's protobuf reads them: the oracle of what a damaged file still holds."""

from __future__ import annotations

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

FIELDS = {  # message -> field: (number, type, repeated); the types are FieldDescriptorProto's
    "Shape": {"dim": (1, 3, True)},
    "Blob": {
        "num": (1, 5, False), "channels": (2, 5, False), "height": (3, 5, False), "width": (4, 5, False),
        "data": (5, 2, True), "shape": (7, ".Shape", False), "double_data": (8, 1, True),
    },
    "Layer": {"name": (1, 12, False), "type": (2, 12, False), "blobs": (7, ".Blob", True)},
    "V1": {"name": (4, 12, False), "type": (5, 5, False), "blobs": (6, ".Blob", True)},
    "Net": {"layers": (2, ".V1", True), "layer": (100, ".Layer", True)},
}  # fmt: skip


def _net() -> type[message.Message]:
    file = descriptor_pb2.FileDescriptorProto(name="caffe_for_tests.proto", syntax="proto2")
    for name, fields in FIELDS.items():
        described = file.message_type.add(name=name)
        for field, (number, kind, many) in fields.items():
            added = described.field.add(name=field, number=number, label=3 if many else 1)
            added.type = 11 if isinstance(kind, str) else kind
            if isinstance(kind, str):
                added.type_name = kind
            if many and not isinstance(kind, str):
                added.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Net"))


NET = _net()


def blobs_of(data: bytes) -> list[tuple[str, list[np.ndarray]]] | None:
    """Return every layer's name and blobs, in the file's order by kind; None for what protobuf does not read."""
    net = NET()
    try:
        net.ParseFromString(data)
    except message.DecodeError:
        return None
    return [
        (each.name.decode("utf-8", "replace"), [_values(b) for b in each.blobs]) for each in (*net.layers, *net.layer)
    ]


def _values(blob: message.Message) -> np.ndarray:
    values = np.array(blob.double_data if len(blob.double_data) else blob.data, dtype=np.float32)
    old = (blob.num, blob.channels, blob.height, blob.width)
    return values.reshape(tuple(blob.shape.dim) if blob.HasField("shape") else old)
