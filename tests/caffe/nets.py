"""Small networks in Caffe's text format, with random weights, computed here and by OpenCV's own reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from caffe_files import write_caffemodel

from engine.plugins.caffe import CaffeNetwork
from engine.plugins.caffe.building import graph
from engine.plugins.caffe.weights import read_caffemodel

Shape = tuple[int, ...]

LENET = """
name: "LeNet"
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 0.00390625 } data_param { source: "mnist_train_lmdb" batch_size: 64 backend: LMDB } }
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { scale: 0.00390625 } data_param { source: "mnist_test_lmdb" batch_size: 100 backend: LMDB } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 20 kernel_size: 5 stride: 1 weight_filler { type: "xavier" }
    bias_filler { type: "constant" } } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1" param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 50 weight_filler { type: "xavier" } bias_filler { type: "constant" } } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } bias_filler { type: "constant" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""


def deploy(layers: str, shape: Shape) -> str:
    """Return a deploy prototxt of layers, with images "data" of [channels, height, width]."""
    dims = " ".join(f"input_dim: {size}" for size in (1, *shape))
    return f'name: "small"\ninput: "data"\n{dims}\n{layers}'


def one(kind: str, bottoms: str = "data", top: str = "out", rest: str = "", name: str = "it") -> str:
    """Return a layer."""
    given = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    tops = " ".join(f'top: "{each}"' for each in top.split())
    return f'layer {{ name: "{name}" type: "{kind}" {given} {tops} {rest} }}\n'


def head(bottom: str, outputs: int = 5) -> str:
    """Return a classifier, so that a network has scores."""
    return one("InnerProduct", bottom, "score", f"inner_product_param {{ num_output: {outputs} }}", "classifier")


def random_blobs(text: str, shape: Shape, seed: int = 0) -> dict[str, tuple[str, Sequence[np.ndarray]]]:
    """Return random weights of every layer, as Caffe has them."""
    rng = np.random.default_rng(seed)
    network = CaffeNetwork(prototxt=text).build(shape, None)
    state = network.state_dict()
    found: dict[str, tuple[str, Sequence[np.ndarray]]] = {}
    for each in graph(text, "TRAIN").layers:
        names = network.blobs.get(each.name, ())
        if not names:
            continue
        if each.type == "BatchNorm":
            found[each.name] = (each.type, _statistics(rng, len(state[f"{each.name.replace('/', '.')}.running_mean"])))
            continue
        blobs = [rng.normal(0, 0.5, tuple(state[name].shape)).astype(np.float32) for name in names]
        found[each.name] = (each.type, blobs)
    return found


def _statistics(rng: np.random.Generator, channels: int) -> list[np.ndarray]:
    factor = np.float32(37.5)
    mean, variance = rng.normal(0, 1, channels), rng.uniform(0.5, 2, channels)
    return [(mean * factor).astype(np.float32), (variance * factor).astype(np.float32), np.array([factor])]


def ours(text: str, shape: Shape, weights: Path | None, images: np.ndarray) -> np.ndarray:
    """Return the scores of this engine's network, [n, outputs]."""
    network = CaffeNetwork(prototxt=text).build(shape, None).eval()
    if weights is not None:
        network.load_state_dict(read_caffemodel(weights), strict=True)
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


def theirs(text: str, weights: Path, images: np.ndarray, folder: Path) -> np.ndarray:
    """Return the scores of OpenCV's network."""
    import cv2

    path = folder / "net.prototxt"
    path.write_text(text)
    network = cv2.dnn.readNetFromCaffe(str(path), str(weights))
    network.setInput(images)
    return network.forward().reshape(len(images), -1)


def both(
    layers: str,
    shape: Shape,
    folder: Path,
    blobs: Mapping[str, tuple[str, Sequence[np.ndarray]]] | None = None,
    count: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what both make of the same random images with the same random weights."""
    text = deploy(layers, shape)
    weights = write_caffemodel(folder / "net.caffemodel", blobs or random_blobs(text, shape))
    images = np.random.default_rng(1).normal(0, 1, (count, *shape)).astype(np.float32)
    return ours(text, shape, weights, images), theirs(text, weights, images, folder)
