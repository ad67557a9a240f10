"""Datum records, against bytes written by hand and against protobuf's own encoder."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from engine.plugins.data.datum import label_of, parse

# message Datum of caffe.proto
FIELDS = (("channels", 1, 5), ("height", 2, 5), ("width", 3, 5), ("data", 4, 12), ("label", 5, 5), ("encoded", 7, 8))


def message_class():
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    message = file.message_type.add(name="Datum")
    for name, number, kind in FIELDS:
        message.field.add(name=name, number=number, type=kind, label=1)
    message.field.add(name="float_data", number=6, type=2, label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Datum"))


def label(message: bytes) -> int | None:
    return label_of(lambda offset, length: message[offset : offset + length], len(message))


def test_bytes_written_by_hand():
    message = bytes.fromhex("08 01  10 02  18 03  22 06 000102fdfeff  28 ac02")
    datum = parse(message)
    assert datum.shape == (1, 2, 3)
    assert datum.pixels().tolist() == [[[0, 1, 2], [253, 254, 255]]]
    assert (datum.label, datum.encoded) == (300, False)
    assert label(message) == 300
    encoded = parse(bytes.fromhex("22 03 ffd8ff  28 00  38 01"))
    assert (encoded.data, encoded.label, encoded.encoded) == (b"\xff\xd8\xff", 0, True)
    assert parse(bytes.fromhex("22 01 07")).label is None


@pytest.mark.parametrize("size", [1, 30, 40, 60, 200, 5000])
@pytest.mark.parametrize("number", [0, 127, 128, 999, 2**31 - 1, -1])
def test_what_protobuf_writes_is_read_back(size, number):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    message = message_class()(channels=1, height=size, width=1, data=data, label=number, encoded=False)
    written = message.SerializeToString()
    datum = parse(written)
    assert datum.shape == (1, size, 1)
    assert (datum.data, datum.label, datum.encoded) == (data, number, False)
    assert label(written) == number
    backwards = message_class()(label=number).SerializeToString() + written  # fields may come in any order
    assert parse(backwards).label == label(backwards) == number


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "it holds no data"),
        (b"hello, this is text", "no Caffe Datum"),
        (bytes.fromhex("22 7f 0102"), "truncated: field 4 ends 125 bytes later"),
        (bytes.fromhex("22 01 07 28"), "a number does not end"),
        (bytes.fromhex("08 01 28 80"), "a number does not end"),
        (bytes.fromhex("20 01"), "field 4 is of another type"),
        (bytes.fromhex("00 01"), "no Caffe Datum"),
        (bytes.fromhex("22 01 07 45 0000"), "truncated in its last field"),
    ],
)
def test_what_is_no_datum_is_said(message, reason):
    with pytest.raises(ValueError, match=reason):
        parse(message)


def test_floats_and_missing_pixels_are_refused():
    with pytest.raises(ValueError, match="float_data"):
        parse(message_class()(channels=1, height=1, width=2, float_data=[0.5, 1.5], label=3).SerializeToString())
    short = parse(message_class()(channels=3, height=2, width=2, data=b"0" * 11, label=3).SerializeToString())
    with pytest.raises(ValueError, match="11 bytes of pixels, but says that it is 3 x 2 x 2"):
        short.pixels()


def test_every_truncation_of_a_datum_is_noticed():
    written = message_class()(channels=3, height=4, width=5, data=bytes(60), label=300).SerializeToString()
    for length in range(len(written)):
        try:
            datum = parse(written[:length])
            assert datum.label is None  # only a cut between two fields leaves a message: the label is then missing
        except ValueError:
            pass
