"""Every kind of layer beside OpenCV's own reader and arithmetic, with random weights in Caffe's format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from caffe_files import blob, layer, write_caffemodel
from nets import both, deploy, head, one, ours, random_blobs, theirs
from torch.nn import functional

from engine.plugins.caffe import CaffeNetwork
from engine.plugins.caffe.statistics import batches_of
from engine.plugins.caffe.weights import read_caffemodel
from engine.weights import load_state

SHAPE = (6, 14, 11)
CONVOLUTIONS = {
    "plain": "num_output: 4 kernel_size: 3",
    "padded": "num_output: 4 kernel_size: 3 pad: 1 stride: 2",
    "groups": "num_output: 8 kernel_size: 3 pad: 1 group: 2",
    "depthwise": "num_output: 6 kernel_size: 3 group: 6 bias_term: false",
    "sides": "num_output: 4 kernel_h: 1 kernel_w: 5 pad_h: 0 pad_w: 2 stride_h: 2 stride_w: 1",
    "dilation": "num_output: 4 kernel_size: 3 dilation: 2 pad: 2",
}
POOLINGS = {
    "max": "pool: MAX kernel_size: 3 stride: 2",
    "mean": "pool: AVE kernel_size: 3 stride: 2",
    "max padded": "pool: MAX kernel_size: 3 stride: 2 pad: 1",
    "mean padded": "pool: AVE kernel_size: 3 stride: 2 pad: 1",
    "sides": "pool: AVE kernel_h: 2 kernel_w: 3 stride_h: 2 stride_w: 1",
    "global": "pool: AVE global_pooling: true",
}
ACTIVATIONS = {
    "ReLU": "", "ReLU leaky": "relu_param { negative_slope: 0.1 }", "Sigmoid": "", "TanH": "", "AbsVal": "",
    "ELU": "elu_param { alpha: 0.7 }", "BNLL": "", "Power": "power_param { power: 2 scale: 0.5 shift: 1.5 }",
    "PReLU": "", "Dropout": "dropout_param { dropout_ratio: 0.3 }",
    "LRN across": "lrn_param { local_size: 3 alpha: 0.8 beta: 0.6 }",
    "LRN within": "lrn_param { local_size: 5 alpha: 0.8 beta: 0.75 norm_region: WITHIN_CHANNEL }",
    "BatchNorm": "batch_norm_param { eps: 0.001 }",
    "Scale": "", "Scale biased": "scale_param { bias_term: true }", "Softmax": "",
}  # fmt: skip
TWO = one("Convolution", "data", "a", "convolution_param { num_output: 6 kernel_size: 3 pad: 1 }", "first")
SEVERAL = {
    "sum": (one("Eltwise", "a data", "b"), "b"),
    "weighted sum": (one("Eltwise", "a data", "b", "eltwise_param { operation: SUM coeff: 0.5 coeff: -2 }"), "b"),
    "product": (one("Eltwise", "a data", "b", "eltwise_param { operation: PROD }"), "b"),
    "largest": (one("Eltwise", "a data a", "b", "eltwise_param { operation: MAX }"), "b"),
    "concat": (one("Concat", "a data a", "b"), "b"),
    "slice": (
        one("Slice", "a", "b c", "slice_param { slice_point: 2 }")
        + one("Concat", "c b", "d", "concat_param { axis: 1 }", "again"),
        "d",
    ),
    "split": (one("Split", "a", "b c") + one("Eltwise", "b c", "d", name="sum"), "d"),
    "flatten": (one("Flatten", "a", "b"), "b"),
    "reshape": (one("Reshape", "a", "b", "reshape_param { shape { dim: 0 dim: 3 dim: -1 dim: 11 } }"), "b"),
    "in place": (one("ReLU", "a", "a") + one("Eltwise", "a data", "b", name="sum"), "b"),
}
"""Layers of more than one blob, and the blob that comes of them."""


def close(pair: tuple[np.ndarray, np.ndarray]) -> bool:
    mine, other = pair
    assert mine.shape == other.shape
    assert np.abs(other).max() > 1e-3
    return bool(np.abs(mine - other).max() <= 2e-5 * max(1.0, np.abs(other).max()))


@pytest.fixture(scope="module", autouse=True)
def oracle():
    pytest.importorskip("cv2", reason="opencv-python-headless<5, the oracle, is not installed")


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_are_opencvs(tmp_path, settings):
    assert close(both(one("Convolution", rest=f"convolution_param {{ {settings} }}") + head("out"), SHAPE, tmp_path))


@pytest.mark.parametrize("groups", [1, 2])
def test_deconvolution_is_opencvs(tmp_path, groups):
    rest = f"convolution_param {{ num_output: 4 kernel_size: 4 stride: 2 pad: 1 group: {groups} }}"
    assert close(both(one("Deconvolution", rest=rest) + head("out"), SHAPE, tmp_path))


@pytest.mark.parametrize("size", [11, 12, 13, 14])
@pytest.mark.parametrize("settings", POOLINGS.values(), ids=POOLINGS)
def test_pooling_keeps_incomplete_windows_as_opencvs(tmp_path, settings, size):
    rest = f"pooling_param {{ {settings} }}"
    assert close(both(one("Pooling", rest=rest) + head("out"), (6, size, 11), tmp_path))


def test_k_of_a_normalisation_is_used():
    """OpenCV's reader leaves it out."""
    rest = "lrn_param { local_size: 3 alpha: 0.8 beta: 0.6 k: 2 }"
    network = CaffeNetwork(prototxt=deploy(one("LRN", rest=rest) + head("out"), SHAPE)).build(SHAPE, 5)
    images = torch.randn(2, *SHAPE, dtype=torch.float64)
    squares = functional.pad(images.square(), (0, 0, 0, 0, 1, 1))
    summed = squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:]
    expected = images / (2 + 0.8 / 3 * summed) ** 0.6
    assert torch.allclose(network.it(images), expected, atol=1e-12)


def test_a_last_window_is_kept_at_224():
    layers = one("Pooling", rest="pooling_param { pool: MAX kernel_size: 3 stride: 2 }") + head("out")
    network = CaffeNetwork(prototxt=deploy(layers, (3, 224, 224))).build((3, 224, 224), 7)
    assert network.classifier.weight.shape == (7, 3 * 112 * 112)  # 111 if it were dropped


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_layers_that_keep_the_shape_are_opencvs(tmp_path, kind):
    layers = one(kind.partition(" ")[0], rest=ACTIVATIONS[kind])
    assert close(both(layers + head("out"), SHAPE, tmp_path))


@pytest.mark.parametrize("kind", SEVERAL)
def test_layers_of_several_blobs_are_opencvs(tmp_path, kind):
    layers, top = SEVERAL[kind]
    assert close(both(TWO + layers + head(top), SHAPE, tmp_path))


def test_batch_norm_and_scale_are_opencvs(tmp_path):
    layers = TWO + one("BatchNorm", "a", "a", name="a/bn")
    layers += one("Scale", "a", "a", "scale_param { bias_term: true }", "a/scale") + one("ReLU", "a", "a", name="relu")
    assert close(both(layers + head("a"), SHAPE, tmp_path))


def test_a_statistics_factor_of_0_makes_them_0_as_opencv_does(tmp_path):
    layers = TWO + one("BatchNorm", "a", "b") + head("b")
    blobs = random_blobs(deploy(layers, SHAPE), SHAPE)
    mean, variance, _ = blobs["it"][1]
    blobs["it"] = ("BatchNorm", [mean, variance, np.zeros(1, np.float32)])
    assert close(both(layers, SHAPE, tmp_path, blobs))
    state = read_caffemodel(tmp_path / "net.caffemodel")
    assert not state["it.running_mean"].any()
    assert not state["it.running_var"].any()


def test_nvidias_batch_norm_of_five_blobs_keeps_the_statistics_themselves(tmp_path):
    text = deploy(one("BatchNorm", rest="batch_norm_param { scale_bias: true eps: 0.01 }") + head("out"), SHAPE)
    rng = np.random.default_rng(0)
    mean, variance, weight, bias = (rng.uniform(0.5, 2, 6).astype(np.float32) for _ in range(4))
    matrix = np.eye(5, 6 * 14 * 11, dtype=np.float32)
    norm = ("BatchNorm", [mean, variance, np.array([0], np.float32), weight, bias])
    product = ("InnerProduct", [matrix, np.zeros(5, np.float32)])
    path = write_caffemodel(tmp_path / "n.caffemodel", {"it": norm, "classifier": product})
    images = rng.normal(0, 1, (3, *SHAPE)).astype(np.float32)
    expected = functional.batch_norm(*map(torch.from_numpy, (images, mean, variance, weight, bias)), eps=0.01)
    assert np.allclose(ours(text, SHAPE, path, images), expected.flatten(1)[:, :5], atol=1e-6)


def test_legacy_blobs_of_four_axes_are_read_as_by_opencv(tmp_path):
    text = deploy(TWO + one("ReLU", "a", "a") + head("a"), SHAPE)
    path = write_caffemodel(tmp_path / "old.caffemodel", random_blobs(text, SHAPE), legacy=True)
    images = np.random.default_rng(1).normal(0, 1, (2, *SHAPE)).astype(np.float32)
    assert close((ours(text, SHAPE, path, images), theirs(text, path, images, tmp_path)))


@pytest.mark.parametrize("how", [{"packed": False}, {"double": True}, {"double": True, "packed": False}, {"parts": 3}])
def test_numbers_are_read_however_they_are_stored(tmp_path, how):
    values = np.random.default_rng(0).normal(size=(4, 6, 3, 3)).astype(np.float32)
    (tmp_path / "n.caffemodel").write_bytes(layer("first", "Convolution", [blob(values, **how)]))
    assert np.array_equal(read_caffemodel(tmp_path / "n.caffemodel")["first.weight"], values)


def test_a_transposed_inner_product_is_turned(tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)  # [inputs, outputs]
    transposed = b"\xaa\x07\x02\x30\x01"  # inner_product_param { transpose: true }
    (tmp_path / "n.caffemodel").write_bytes(layer("ip", "InnerProduct", [blob(values)], transposed))
    assert np.array_equal(read_caffemodel(tmp_path / "n.caffemodel")["ip.weight"], values.T)


def test_scaling_by_a_blob_permuting_and_cropping():
    layers = (
        one("Pooling", "data", "p", "pooling_param { pool: AVE global_pooling: true }", "pool")
        + one("Flatten", "p", "f", name="flat")
        + one("Scale", "data f", "s", "scale_param { axis: 0 }")
        + one("Permute", "s", "q", "permute_param { order: 0 order: 2 order: 3 order: 1 }", "permute")
        + one("Pooling", "q", "r", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }", "half")
        + one("Crop", "q r", "c", "crop_param { axis: 2 offset: 1 offset: 2 }", "crop")
    )
    text = deploy(layers + head("c", 3), SHAPE)
    network = CaffeNetwork(prototxt=text).build(SHAPE, 3).eval()
    images = torch.randn(2, *SHAPE)
    scaled = (images * images.mean((2, 3), keepdim=True)).permute(0, 2, 3, 1)
    cropped = scaled[:, :, 1 : 1 + 6, 2 : 2 + 3]  # behind the pooling, 11 x 6 are 6 x 3
    assert torch.allclose(network(images), network.classifier(cropped.flatten(1)), atol=1e-6)


@pytest.mark.parametrize("kept", [0.999, 0.7, 1.0, 0.0])
@pytest.mark.parametrize("shape", [(3, 5, 4), (6,)])
def test_statistics_are_summed_as_caffe_sums_them(tmp_path, shape, kept):
    """Caffe's blobs in float64: S = kept S + statistic, F = kept F + 1, from 0; then on from them in a .caffemodel."""
    rng = np.random.default_rng(0)
    image = (*shape, 1, 1)[:3]
    layers = one("Flatten" if len(shape) == 1 else "Split", "data", "flat", name="flat")
    layers += one("BatchNorm", "flat", rest=f"batch_norm_param {{ moving_average_fraction: {kept} }}")
    text = deploy(layers + head("out"), image)
    network = CaffeNetwork(prototxt=text).build(image, 5).train()
    sums, factor = [np.zeros(shape[0]), np.zeros(shape[0])], 0.0

    def see(network: torch.nn.Module) -> None:
        nonlocal factor
        images = rng.normal(3, 2, (8, *image))
        network(torch.from_numpy(images).float())
        seen = np.moveaxis(images, 1, 0).reshape(shape[0], -1)
        size = seen.shape[1]
        for total, statistic in zip(sums, (seen.mean(1), seen.var(1) * size / (size - 1)), strict=True):
            total *= kept
            total += statistic
        factor = kept * factor + 1
        assert np.allclose(network.it.running_mean, sums[0] / factor, rtol=1e-4)
        assert np.allclose(network.it.running_var, sums[1] / factor, rtol=1e-4)

    for _ in range(5):
        see(network)
    given = b"\xda\x08\x05\x15" + np.float32(kept).tobytes()  # batch_norm_param { moving_average_fraction: kept }
    blobs = [blob(values.astype(np.float32)) for values in (*sums, np.array([factor]))]
    (tmp_path / "n.caffemodel").write_bytes(layer("it", "BatchNorm", blobs, given))
    again = CaffeNetwork(prototxt=text).build(image, 5).train()
    load_state(again, {**again.state_dict(), **read_caffemodel(tmp_path / "n.caffemodel")}, "n")
    for _ in range(3):
        see(again)


def test_a_factor_at_its_limit_counts_as_long_training():
    kept = 0.999
    count = batches_of(999.99994, kept)  # the largest that float32's sum comes to
    assert (1 - kept) / (1 - kept**count) == pytest.approx(0.001, rel=1e-4)
    assert batches_of(0.0, kept) == batches_of(float("nan"), kept) == 0


def test_global_statistics_stay_in_training():
    text = deploy(one("BatchNorm", rest="batch_norm_param { use_global_stats: true }") + head("out", 3), SHAPE)
    network = CaffeNetwork(prototxt=text).build(SHAPE, 3).train()
    network.it.running_mean.fill_(0.5)
    images = torch.randn(4, *SHAPE)
    before = network(images)
    assert torch.equal(network.eval()(images), before)
    assert network.it.running_mean.eq(0.5).all()
