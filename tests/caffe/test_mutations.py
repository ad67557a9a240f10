"""Damaged files: a clear error or a right network, never a crash, a hang or unbounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from caffe_files import blob, block, layer, layer_v1, varint, write_caffemodel
from nets import deploy, head, one, random_blobs

from engine import UsageError
from engine.plugins.caffe.weights import read_caffemodel
from engine.plugins.caffe.wire import read_blob, read_solver_state

SHAPE = (3, 32, 32)
LAYERS = (
    one("Convolution", "data", "c", "convolution_param { num_output: 8 kernel_size: 3 group: 1 pad: 1 }", "conv/1")
    + one("BatchNorm", "c", "c", name="bn")
    + one("Scale", "c", "c", "scale_param { bias_term: true }", "scale")
    + one("LRN", "c", "n", "lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL }", "norm")
    + one("Pooling", "n", "p", "pooling_param { pool: AVE kernel_size: 3 stride: 2 }", "pool")
    + one("Slice", "p", "s t", "slice_param { slice_point: 4 }", "slice")
    + one("Eltwise", "s t", "e", "eltwise_param { operation: SUM coeff: 1 coeff: -1 }", "sum")
    + one("Concat", "e s", "f", name="together")
    + one("Reshape", "f", "r", "reshape_param { shape { dim: 0 dim: 8 dim: -1 } }", "reshape")
    + head("r", 10)
)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_damaged_files_are_refused_or_read_right(tmp_path, count):
    pytest.importorskip("google.protobuf", reason="protobuf, the oracle, is not installed")
    text = deploy(LAYERS, SHAPE)
    (tmp_path / "a.prototxt").write_text(text)
    (tmp_path / "b.prototxt").write_text(TRAIN_VAL)
    blobs = random_blobs(text, SHAPE)
    write_caffemodel(tmp_path / "new.caffemodel", blobs)
    old = [layer_v1(name, kind, [blob(b, legacy=True, packed=b.size > 99) for b in each])
           for name, (kind, each) in blobs.items() if kind in ("Convolution", "InnerProduct")]  # fmt: skip
    (tmp_path / "old.caffemodel").write_bytes(block(1, "old") + b"".join(old))
    program = Path(__file__).with_name("mutating.py")
    seed = int(os.environ.get("ENGINE_TEST_SEED", "0"))
    ran = subprocess.run(
        [sys.executable, program, tmp_path, str(seed), str(count)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    outcomes = json.loads(ran.stdout)
    assert "failed" not in outcomes, ran.stderr[-3000:]
    print(f"{count} damaged files: {outcomes}")
    assert sum(value for name, value in outcomes.items() if "MiB" not in name) == count
    for outcome in ("weights refused", "weights read", "network refused", "network built"):
        assert outcomes[outcome] > count / 100, "the damage does not reach everything"


TRAIN_VAL = """
name: "both"
layers { name: "data" type: DATA top: "data" top: "label" data_param { source: "x" batch_size: 4 } }
layers { name: "c1" type: CONVOLUTION bottom: "data" top: "c1" blobs_lr: 1 blobs_lr: 2
  convolution_param { num_output: 4 kernel_h: 3 kernel_w: 5 stride_h: 2 stride_w: 1 weight_filler { type: "xavier" } } }
layers { name: "r" type: RELU bottom: "c1" top: "c1" relu_param { negative_slope: 0.5 } }
layers { name: "p" type: POOLING bottom: "c1" top: "p" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layers { name: "d" type: DROPOUT bottom: "p" top: "p" dropout_param { dropout_ratio: 0.5 } }
layers { name: "ip" type: INNER_PRODUCT bottom: "p" top: "ip" inner_product_param { num_output: 10 } }
layers { name: "acc" type: ACCURACY bottom: "ip" bottom: "label" top: "acc" include { phase: TEST } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "ip" bottom: "label" }
"""


def test_a_length_beyond_the_file_is_refused_without_memory_for_it(tmp_path):
    path = tmp_path / "huge.caffemodel"
    path.write_bytes(b"\xa2\x06\xff\xff\xff\xff\xff\xff\xff\xff\x7f")  # a layer of 2^63 - 1 bytes
    with pytest.raises(UsageError, match=r"huge\.caffemodel is no whole Caffe \.caffemodel \(field 100 ends"):
        read_caffemodel(path)
    shape = block(7, block(1, b"\xff\xff\xff\xff\x07\xff\xff\xff\xff\x07"))
    path.write_bytes(block(100, block(1, "a") + block(2, "Convolution") + block(7, shape + block(5, b"\0\0\0\0"))))
    with pytest.raises(UsageError, match="layer 'a': a blob of 2147483647 x 2147483647 holds 1 numbers"):
        read_caffemodel(path)


@pytest.mark.parametrize("dims", [(0, 2**62, 2**62), (0, 2**31 - 1, 2**31 - 1, 2**31 - 1), (0, 2**31)])
def test_dimensions_beyond_caffes_own_limit_are_refused_beside_a_0_too(tmp_path, dims):
    path = tmp_path / "empty.caffemodel"
    shape = block(7, block(1, b"".join(map(varint, dims))))
    path.write_bytes(layer("a", "Convolution", [shape]))
    with pytest.raises(UsageError, match=r"layer 'a': a blob of 0 x [0-9x ]+ holds 0 numbers"):
        read_caffemodel(path)


@pytest.mark.parametrize("content", [b"", b"\0", b"PK\3\4 a zip", b"\x0a\x02ab"])
@pytest.mark.parametrize("read", [read_caffemodel, read_blob, read_solver_state])
def test_other_files_are_refused_in_a_line(tmp_path, read, content):
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"other\.bin is no whole Caffe [^\n]* fetch it again"):
        read(path)
    with pytest.raises(UsageError, match=r"none\.bin does not exist: give a Caffe"):
        read(tmp_path / "none.bin")


def test_files_of_the_time_before_v1_are_refused_naming_the_tool(tmp_path):
    path = tmp_path / "v0.caffemodel"
    path.write_bytes(block(2, block(1, block(1, "conv1") + block(2, "conv"))))
    with pytest.raises(UsageError, match="upgrade_net_proto_binary"):
        read_caffemodel(path)
