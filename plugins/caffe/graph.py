"""What a prototxt computes: its layers in a phase, the blob of the images, the heads and their classifiers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from engine.errors import did_you_mean

from .layer import Layer
from .prototxt import Mistake, Node, parse
from .schema import Message
from .simple import MAKERS

TRAIN, TEST = "TRAIN", "TEST"
DATA = (
    "AnnotatedData", "Data", "DummyData", "HDF5Data", "ImageData", "Input", "MemoryData", "Python", "WindowData",
)  # fmt: skip
LOSSES = (
    "SoftmaxWithLoss", "SigmoidCrossEntropyLoss", "EuclideanLoss", "HingeLoss", "InfogainLoss",
    "MultinomialLogisticLoss",
)  # fmt: skip
WATCHING = ("Accuracy", "ArgMax", "HDF5Output", "Silence")  # they look at blobs, and nothing is computed with theirs
PASSING = ("BatchNorm", "Bias", "Dropout", "Flatten", "LRN", "Permute", "Pooling", "Power", "PReLU", "ReLU", "Reshape",
           "Scale", "Sigmoid", "Split", "TanH", "ELU", "AbsVal", "BNLL")  # fmt: skip
CLASSIFIERS = ("Convolution", "InnerProduct")


@dataclass(frozen=True)
class Graph:
    """A network to be made. layers: those that compute, in their order. image: the blob that the images are.

    heads: the blobs that are the network's scores, the main one first. classifiers: the last layers with weights before
    each head, whose outputs are as many as there are classes. losses: what the heads train with, the main one's first.
    size: (channels, height, width) that the file says images
    have, as far as it says; transform: how the file's data layer prepares them; batch: how many it takes at once.
    """

    name: str
    layers: Sequence[Layer]
    image: str
    heads: Sequence[str]
    classifiers: Sequence[Layer]
    losses: Sequence[Layer]
    size: tuple[int, int, int] | None
    transform: Message | None
    batch: int | None


def graph_of(text: str, phase: str = TRAIN, stages: Collection[str] = ()) -> Graph:
    """Return the graph that a prototxt describes in a phase and its stages. Raises Mistake, which names the line."""
    root = parse(text)
    net = Message("net", root)
    layers = _layers(root)
    if not layers:
        raise Mistake(1, "a network has layers, and here are none")
    layers = [layer for layer in layers if _included(layer, phase, stages)]
    inputs = [*net.all("input"), *(top for layer in layers if gives_data(layer) for top in layer.tops)]
    layers = _of_known_types(layers)
    if not inputs:
        inputs = _unbound(layers)
    computing = [layer for layer in layers if layer.type in MAKERS]
    computing, heads = _heads(layers, computing, inputs)
    computing = _needed(computing, heads, inputs[0])
    return Graph(
        name=net.get("name") or "",
        layers=computing,
        image=inputs[0],
        heads=heads,
        classifiers=[layer for head in heads if (layer := _classifier(head, computing))],
        losses=_losses(layers),
        size=_size(net, root, phase, stages),
        transform=_transform(root, phase, stages),
        batch=_batch(root, phase, stages),
    )


def _layers(root: Node) -> list[Layer]:
    named = [each for each in root.fields if each.name in ("layer", "layers")]
    return [Layer.of(each.value, each.name) for each in named if isinstance(each.value, Node)]


def gives_data(layer: Layer) -> bool:
    """Return whether a layer is where images and labels come from."""
    return layer.type in DATA and not layer.bottoms


def _included(layer: Layer, phase: str, stages: Collection[str]) -> bool:
    """Return whether a layer is part of the net in a state, as Caffe's rules say."""
    include, exclude = layer.message.all("include"), layer.message.all("exclude")
    if include and exclude:
        raise layer.mistake("it has include rules and exclude rules; Caffe takes one of them")
    if layer.kind == "layer" and layer.message.has("phase") and layer.message.get("phase") != phase:
        return False
    if include:
        return any(_meets(rule, phase, stages) for rule in include)
    return not any(_meets(rule, phase, stages) for rule in exclude)


def _meets(rule: Message, phase: str, stages: Collection[str]) -> bool:
    level = 0
    return (
        rule.get("phase") in (None, phase)
        and (rule.get("min_level") or 0) <= level
        and (rule.get("max_level") is None or level <= rule.get("max_level"))
        and all(stage in stages for stage in rule.all("stage"))
        and not any(stage in stages for stage in rule.all("not_stage"))
    )


def _of_known_types(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers but those that give data. Raises Mistake, naming them, for types that cannot be computed."""
    rest = [layer for layer in layers if not gives_data(layer)]
    unknown = [layer for layer in rest if layer.type not in (*MAKERS, *LOSSES, *WATCHING)]
    if unknown:
        named = ", ".join(f"'{layer.name[:40]}' of type {layer.type[:40]}" for layer in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        hint = did_you_mean(unknown[0].type, [*MAKERS, *LOSSES, *WATCHING, *DATA])
        raise Mistake(unknown[0].node.line, f"not supported: layer {named}{more}{hint}")
    for layer in rest:
        layer.check()
    return rest


def _unbound(layers: Sequence[Layer]) -> list[str]:
    """Return the first blob that nobody gives: that of the images, where the data layer is of another stage."""
    given: set[str] = set()
    for layer in layers:
        for bottom in layer.bottoms:
            if bottom not in given and layer.type in MAKERS:
                return [bottom]
        given.update(layer.tops)
    raise Mistake(1, "the network has no input: give it an Input layer, or input and input_dim")


def _heads(layers: Sequence[Layer], computing: list[Layer], inputs: Sequence[str]) -> tuple[list[Layer], list[str]]:
    """Return the blobs of the scores, and the layers that are left without a Softmax that only makes them probable.

    They are what the losses are of, that with the largest weight first, of equal ones the last; without losses, what
    nothing is computed with, the last first.
    """
    if losses := _losses(layers):
        for loss in losses:
            if len(loss.bottoms) < 2:
                raise loss.mistake(f"it has {len(loss.bottoms)} bottoms instead of scores and labels")
        found = list(dict.fromkeys(loss.bottoms[0] for loss in losses))
    else:
        found = _unread(layers)
    heads = []
    for head in found:
        maker = next((layer for layer in reversed(computing) if head in layer.tops), None)
        if maker is None:
            raise Mistake(1, f"the head '{head[:60]}' is computed by no layer")
        if maker.type == "Softmax" and maker.bottoms and not _used_behind(computing, maker, head):
            computing = [layer for layer in computing if layer is not maker]
            head = maker.bottoms[0]
        heads.append(head)
    if not heads or any(head in inputs for head in heads):
        raise Mistake(1, "the network computes nothing from its images")
    return computing, list(dict.fromkeys(heads))


def _unread(layers: Sequence[Layer]) -> list[str]:
    """Return the blobs that nothing is computed with once they are written for the last time, the last first."""
    unread: dict[str, None] = {}
    for layer in layers:
        for bottom in layer.bottoms if layer.type in (*MAKERS, "Silence") else ():
            unread.pop(bottom, None)
        unread |= dict.fromkeys(layer.tops if layer.type in MAKERS else ())
    return list(unread)[::-1]


def _used_behind(computing: Sequence[Layer], maker: Layer, blob: str) -> bool:
    place = next(place for place, layer in enumerate(computing) if layer is maker)
    return any(blob in layer.bottoms for layer in computing[place + 1 :])


def _losses(layers: Sequence[Layer]) -> list[Layer]:
    """Return the losses, that with the largest weight first, of equal ones the last."""
    return sorted((layer for layer in layers if layer.type in LOSSES), key=weight_of)[::-1]


def weight_of(loss: Layer) -> float:
    """Return the weight of a loss in the sum that is trained."""
    weights = loss.message.all("loss_weight")
    return float(weights[0]) if weights else 1.0


def _needed(computing: Sequence[Layer], heads: Sequence[str], image: str) -> list[Layer]:
    """Return the layers that the heads depend on. Raises Mistake for a blob that nobody gives before it is used."""
    wanted, kept = set(heads), []
    for layer in reversed(computing):
        if wanted.isdisjoint(layer.tops):
            continue
        kept.append(layer)
        wanted -= set(layer.tops)
        wanted |= set(layer.bottoms)
        if not layer.bottoms:
            raise layer.mistake("it has no bottom")
    if missing := wanted - {image}:
        blob = sorted(missing)[0]
        reader = next((layer for layer in kept if blob in layer.bottoms), None)
        reason = f"blob '{blob[:60]}' is given by no layer before it, and is not the images '{image[:60]}'"
        raise reader.mistake(reason) if reader else Mistake(1, reason)
    if image not in wanted:
        raise Mistake(1, f"nothing is computed from the images '{image[:60]}'")
    return kept[::-1]


def _classifier(head: str, layers: Sequence[Layer]) -> Layer | None:
    """Return the layer whose outputs a head's are; None where layers with several bottoms are between."""
    for layer in reversed(layers):
        if head not in layer.tops:
            continue
        if layer.type in CLASSIFIERS:
            return layer
        if layer.type not in PASSING or len(layer.bottoms) != 1:
            return None
        head = layer.bottoms[0]
    return None


def _data_layers(root: Node, phase: str, stages: Collection[str]) -> list[Layer]:
    layers = _layers(root)
    own = [layer for layer in layers if gives_data(layer) and _included(layer, phase, stages)]
    return own or [layer for layer in layers if gives_data(layer) and layer.type != "Input"]


def _size(net: Message, root: Node, phase: str, stages: Collection[str]) -> tuple[int, int, int] | None:
    """Return the images' size, as an input or a data layer's crop says it; of a crop, three channels."""
    dims = list(net.all("input_dim")[:4])
    if not dims and net.has("input_shape"):
        dims = list(net.all("input_shape")[0].all("dim"))
    for layer in _data_layers(root, phase, stages):
        if layer.type == "Input" and not dims and any(layer.node.all("input_param")):
            shapes = layer.settings("input_param").all("shape")
            dims = list(shapes[0].all("dim")) if shapes else []
    if len(dims) == 4 and min(dims[1:]) > 0:
        return dims[1], dims[2], dims[3]
    transform = _transform(root, phase, stages)
    crop = transform.get("crop_size") if transform else 0
    return (3, crop, crop) if crop else None


def _transform(root: Node, phase: str, stages: Collection[str]) -> Message | None:
    for layer in _data_layers(root, phase, stages):
        if any(layer.node.all("transform_param")):
            transform: Message = layer.message.get("transform_param")
            return transform
        for name in ("data_param", "image_data_param", "window_data_param"):  # where it was before
            old = [each for node in layer.node.all(name) if isinstance(node.value, Node) for each in node.value.fields]
            known = [each for each in old if each.name in ("scale", "mean_file", "crop_size", "mirror")]
            if known:
                return Message("transform", Node(layer.node.line, known))
    return None


def _batch(root: Node, phase: str, stages: Collection[str]) -> int | None:
    for layer in _data_layers(root, phase, stages):
        for each in layer.node.fields:
            if isinstance(each.value, Node):
                for inner in each.value.all("batch_size"):
                    value = Message("data_batch", Node(inner.line, [inner])).get("batch_size")
                    return int(value) if value > 0 else None
    return None
