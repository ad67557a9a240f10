"""One layer of a prototxt, of either format, and what is shared by those who make modules of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from .prototxt import Mistake, Node, Text
from .schema import SCHEMA, Message
from .wire import V1_TYPES

Shape = tuple[int, ...]

LARGEST_BLOB = 2**28  # numbers of an image behind a layer; the largest in Caffe's zoo has 2**22
MOST_WEIGHTS = 2**28  # of a layer: VGG's largest has fewer than 2**27; a network has twice as many at most
V1_NAMES = {
    "ABSVAL": 35, "ACCURACY": 1, "ARGMAX": 30, "BNLL": 2, "CONCAT": 3, "CONTRASTIVE_LOSS": 37, "CONVOLUTION": 4,
    "DATA": 5, "DECONVOLUTION": 39, "DROPOUT": 6, "DUMMY_DATA": 32, "EUCLIDEAN_LOSS": 7, "ELTWISE": 25, "EXP": 38,
    "FLATTEN": 8, "HDF5_DATA": 9, "HDF5_OUTPUT": 10, "HINGE_LOSS": 28, "IM2COL": 11, "IMAGE_DATA": 12,
    "INFOGAIN_LOSS": 13, "INNER_PRODUCT": 14, "LRN": 15, "MEMORY_DATA": 29, "MULTINOMIAL_LOGISTIC_LOSS": 16, "MVN": 34,
    "POOLING": 17, "POWER": 26, "RELU": 18, "SIGMOID": 19, "SIGMOID_CROSS_ENTROPY_LOSS": 27, "SILENCE": 36,
    "SOFTMAX": 20, "SOFTMAX_LOSS": 21, "SPLIT": 22, "SLICE": 33, "TANH": 23, "WINDOW_DATA": 24, "THRESHOLD": 31,
}  # fmt: skip
V1_WORDS = {word: V1_TYPES[number] for word, number in V1_NAMES.items()}


@dataclass(frozen=True)
class Layer:
    """A layer as a prototxt describes it. kind: "layer" or, of files before 2014, "layers"."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    message: Message
    node: Node
    kind: str

    @classmethod
    def of(cls, node: Node, kind: str) -> Layer:
        """Return the layer that a node of the net is. Raises Mistake for one of the time before V1, or without type."""
        if kind == "layers" and any(node.all("layer")):
            raise Mistake(node.line, "layers of the format before 2013: convert it with Caffe's upgrade_net_proto_text")
        message = Message(kind, node, open=True)
        name, type_ = message.get("name") or "", message.get("type")
        if type_ is None:
            raise Mistake(node.line, f"layer '{name[:40]}' has no type")
        if kind == "layers":
            type_ = (
                V1_TYPES.get(int(type_), type_) if type_.isdecimal() and len(type_) < 10 else V1_WORDS.get(type_, type_)
            )
        bottoms, tops = tuple(message.all("bottom")), tuple(message.all("top"))
        return cls(name, type_, bottoms, tops, message, node, kind)

    def settings(self, name: str) -> Message:
        """Return the message of the layer's own parameters, empty if it is not given. Raises Mistake."""
        given = list(self.node.all(name))
        merged = Node(given[-1].line if given else self.node.line)
        for each in given:  # protobuf merges a message that is given twice
            if not isinstance(each.value, Node):
                raise Mistake(each.line, f"{name} takes a message in braces")
            merged.fields += each.value.fields
        return Message(name, merged)

    def check(self) -> None:
        """Raise Mistake for a field that no layer of Caffe's has; of types that are computed."""
        for each in self.node.fields:
            known = each.name in SCHEMA[self.kind] or each.name.endswith("_param") or each.name == "blobs"
            if not known:
                Message(self.kind, Node(self.node.line, [each]))

    def mistake(self, reason: str) -> Mistake:
        """Return the error that names this layer."""
        return Mistake(self.node.line, f"layer '{self.name[:60]}' ({self.type[:40]}): {reason}")

    def multipliers(self, place: int) -> tuple[float, float]:
        """Return what multiplies the learning rate and the weight decay of the layer's parameter number ``place``."""
        if self.kind == "layers":
            lr, decay = self.message.all("blobs_lr"), self.message.all("weight_decay")
            return (lr[place] if place < len(lr) else 1.0), (decay[place] if place < len(decay) else 1.0)
        given: Sequence[Any] = self.message.all("param")
        return (given[place].get("lr_mult"), given[place].get("decay_mult")) if place < len(given) else (1.0, 1.0)

    def shared(self) -> list[str]:
        """Return the names under which the layer shares parameters."""
        if self.kind == "layers":
            return [name for name in self.message.all("param") if name]
        return [name for each in self.message.all("param") if (name := each.get("name"))]

    def word(self, name: str) -> str:
        """Return the value of a plain field that is not checked, "" if it is not given."""
        values = [each.value.value for each in self.node.all(name) if isinstance(each.value, Text)]
        return values[-1] if values else ""


@dataclass(frozen=True)
class Made:
    """What computes a layer. module: None where tops are the bottoms. shapes: of the tops, without the images' axis.

    flat: whether it takes an image's numbers in a row. parameters: names within the module, in the order of Caffe's
    blobs; "" for a blob that is none.
    """

    module: nn.Module | None
    shapes: list[Shape]
    flat: bool = False
    parameters: tuple[str, ...] = ()


def require_blobs(layer: Layer, shapes: Sequence[Shape], count: int | None = 1, tops: int | None = 1) -> None:
    """Raise Mistake unless a layer has so many bottoms and tops; None: at least one."""
    for what, given, wanted in (("bottom", len(shapes), count), ("top", len(layer.tops), tops)):
        if given != wanted if wanted is not None else given < 1:
            raise layer.mistake(f"it has {given} {what}s instead of {wanted or 'at least one'}")


def require_image(layer: Layer, shape: Shape) -> tuple[int, int, int]:
    """Return a blob's channels, height and width. Raises Mistake for one of other axes."""
    if len(shape) != 3:
        raise layer.mistake(f"it takes images, and its bottom is of shape {list(shape)}")
    return shape[0], shape[1], shape[2]


def require_size(layer: Layer, shape: Shape, weights: int = 0) -> Shape:
    """Return a top's shape. Raises Mistake where nothing is left, or it or the weights are beyond bounds."""
    if any(size < 1 for size in shape):
        raise layer.mistake(f"nothing is left of the image: its top would be of shape {list(shape)}")
    if prod(shape) > LARGEST_BLOB:
        raise layer.mistake(f"its top would hold {prod(shape):,} numbers an image: the limit is {LARGEST_BLOB:,}")
    if weights > MOST_WEIGHTS:
        raise layer.mistake(f"it would have {weights:,} weights: the limit is {MOST_WEIGHTS:,}")
    return shape


def axis_of(layer: Layer, axis: int, shape: Shape) -> int:
    """Return an axis counted from the front, that of the images being 0. Raises Mistake for one that is not there."""
    axes = len(shape) + 1
    if not -axes <= axis < axes:
        raise layer.mistake(f"axis {axis} does not exist: its bottom has {axes}")
    return axis % axes


def inner_axis(layer: Layer, axis: int, shape: Shape) -> int:
    """As ``axis_of``, for what cannot be done along the images' axis."""
    place = axis_of(layer, axis, shape)
    if place == 0:
        raise layer.mistake("axis 0 is that of the images, which are computed apart")
    return place
