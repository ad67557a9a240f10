"""The weights of a .caffemodel under the names of a module's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine import UsageError

from .naming import path_of
from .statistics import MATURE, batches_of, fraction_of
from .wire import Blob, Damaged, StoredLayer, layers_of, opened

WHAT = "a Caffe .caffemodel"


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """Return the weights in a .caffemodel, of either format, as float32 under LAYER.weight and so on.

    A slash in a layer's name is a dot. Shapes are torch's: of inner products [outputs, inputs], of biases [outputs].
    BatchNorm's blobs become running_mean and running_var, divided by their scale factor (0 where it is 0), and
    num_batches_tracked, of which the factor tells; a Scale behind it is a layer of its own. Blobs of layers that are
    not known are LAYER.0 and so on. Raises UsageError naming a file that is damaged or holds no weights.
    """
    with opened(path, WHAT) as data:
        state = {
            f"{path_of(layer.name)}.{name}": torch.from_numpy(
                np.array(values, None if values.dtype.kind == "i" else np.float32, order="C")
            )
            for layer in layers_of(data)
            if layer.blobs
            for name, values in _named(layer).items()
        }
        if not state:
            raise Damaged("no layer in it has weights")
    return state


def layers_with_weights(path: Path) -> dict[str, StoredLayer]:
    """Return the layers with weights by their names, without the weights' values. Raises UsageError as above."""
    with opened(path, WHAT) as data:
        return {layer.name: StoredLayer(layer.name, layer.type) for layer in layers_of(data) if layer.blobs}


def _named(layer: StoredLayer) -> Mapping[str, np.ndarray]:
    try:
        return READERS.get(layer.type, _numbered)(layer)
    except Damaged as error:
        raise Damaged(f"layer '{layer.name[:60]}' ({layer.type[:40]}): {error}") from error


def _numbered(layer: StoredLayer) -> dict[str, np.ndarray]:
    return {str(place): blob.values for place, blob in enumerate(layer.blobs)}


def _most(layer: StoredLayer, count: int) -> Sequence[Blob]:
    if len(layer.blobs) > count:
        raise Damaged(f"it has {len(layer.blobs)} blobs instead of {count} at most")
    return layer.blobs


def _filters(layer: StoredLayer) -> dict[str, np.ndarray]:
    weight, *bias = _most(layer, 2)
    return {"weight": weight.values, **_bias(bias)}


def _bias(blobs: Sequence[Blob]) -> dict[str, np.ndarray]:
    return {"bias": blobs[0].values.reshape(-1)} if blobs else {}


def _matrix(layer: StoredLayer) -> dict[str, np.ndarray]:
    weight, *bias = _most(layer, 2)
    values = weight.values
    if weight.legacy:
        if values.shape[:2] != (1, 1):
            raise Damaged(f"its matrix is of shape {list(values.shape)} instead of [1, 1, outputs, inputs]")
        values = values[0, 0]
    if values.ndim != 2:
        raise Damaged(f"its weights are of shape {list(values.shape)}, which is no matrix")
    return {"weight": values.T if layer.transposed else values, **_bias(bias)}


def _scaled(layer: StoredLayer) -> dict[str, np.ndarray]:
    weight, *bias = _most(layer, 2)
    return {"weight": weight.values.reshape(-1), **_bias(bias)}


def _slopes(layer: StoredLayer) -> dict[str, np.ndarray]:
    return {"weight": _most(layer, 1)[0].values.reshape(-1)}


def _statistics(layer: StoredLayer) -> dict[str, np.ndarray]:
    """Return what BatchNorm keeps: Caffe sums its means and variances up, and the third blob is what they sum to.

    NVIDIA's Caffe keeps the statistics themselves, and may have a scale and a bias behind three blobs.
    """
    blobs = [blob.values.reshape(-1) for blob in layer.blobs]
    if len(blobs) == 5:
        mean, variance, _, weight, bias = blobs
        found = {"running_mean": mean, "running_var": variance, "weight": weight, "bias": bias}
        return {**found, "num_batches_tracked": np.array(MATURE)}
    if len(blobs) != 3 or blobs[2].size != 1:
        raise Damaged(f"it has {len(blobs)} blobs instead of mean, variance and one factor")
    factor = float(blobs[2][0])
    scale = np.float32(0 if factor == 0 else 1 / factor)
    batches = np.array(batches_of(factor, fraction_of(layer.kept)))
    return {"running_mean": blobs[0] * scale, "running_var": blobs[1] * scale, "num_batches_tracked": batches}


READERS: Mapping[str, Callable[[StoredLayer], Mapping[str, np.ndarray]]] = {
    "Convolution": _filters,
    "Deconvolution": _filters,
    "InnerProduct": _matrix,
    "Scale": _scaled,
    "Bias": lambda layer: _bias(_most(layer, 1)),
    "PReLU": _slopes,
    "BatchNorm": _statistics,
}


def fitted(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Return what a network wants of a file's weights, and the names of layers that it has no use for.

    wanted: the network's state. Raises UsageError naming layers that the file lacks, or of which it has other shapes.
    """
    names = [name for name in wanted if name in state or not name.endswith("num_batches_tracked")]
    missing = sorted({name.rpartition(".")[0] for name in names if name not in state})
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UsageError(
            f"{path} has no weights for {', '.join(missing[:5])}{more}: it is of another network than the prototxt"
        )
    for name in names:
        if state[name].shape != wanted[name].shape:
            raise UsageError(
                f"{path}: {name} is {list(state[name].shape)}, and {list(wanted[name].shape)} in the prototxt's network"
            )
    left = sorted({name.rpartition(".")[0] for name in state if name not in wanted})
    return {name: state[name] for name in names}, left
