"""Which of the engine's losses is the one that a prototxt trains with; others are refused, never replaced."""

from __future__ import annotations

from .graph import Graph, weight_of
from .layer import Layer
from .prototxt import Mistake

SAME = {"SoftmaxWithLoss": "cross_entropy", "HingeLoss": "squared_hinge"}
INSTEAD = "change it to SoftmaxWithLoss, or to HingeLoss with norm: L2"


def require_losses(graph: Graph) -> None:
    """Raise Mistake, naming the layer and its type, for a loss that none of the engine's is the same as.

    The same are SoftmaxWithLoss and cross_entropy, HingeLoss of norm L2 and squared_hinge: both of Caffe's are
    sums over classes and means over images. A deploy file has no losses, and all of them are the engine's.
    """
    for layer in graph.losses:
        if layer.type not in SAME:
            raise layer.mistake(f"no training with this loss: {INSTEAD}; phase TEST leaves losses out")
        if len(layer.bottoms) != 2:
            raise layer.mistake(f"it has {len(layer.bottoms)} bottoms instead of scores and labels")
        if layer.type == "HingeLoss" and layer.settings("hinge_loss_param").get("norm") not in ("L2", "2"):
            raise layer.mistake(f"no training with norm L1, which is Caffe's default: {INSTEAD}")
        _require_defaults(layer)
    for layer in graph.layers:
        if any(layer.message.all("loss_weight")):
            raise layer.mistake("a loss_weight of a layer that is no loss is not supported")


def _require_defaults(layer: Layer) -> None:
    settings = layer.settings("loss_param")
    if settings.get("normalization") != "VALID":
        raise layer.mistake(f"normalization {settings.get('normalization')} is not supported: VALID, the default, is")
    for name in ("ignore_label", "normalize"):
        if settings.has(name):
            raise layer.mistake(f"{name} of loss_param is not supported: leave it out")


def loss_of(graph: Graph) -> tuple[str, float, float | None]:
    """Return the engine's loss, the weight of the main head's, and that of further heads by it; None: there are none.

    Raises Mistake for what ``require_losses`` refuses, losses of two kinds, several of one head, or weights that the
    engine cannot give. Without losses, as in deploy files, the engine's own are what counts: "".
    """
    require_losses(graph)
    if not graph.losses:
        return "", 1.0, None
    main, *further = graph.losses
    for layer in further:
        if layer.type != main.type:
            raise layer.mistake(f"heads with different losses are not supported: the main one's is {main.type}")
    if len(graph.losses) != len(graph.heads):
        raise further[0].mistake("several losses of one head are not supported")
    weights = [weight_of(layer) for layer in graph.losses]
    if weights[0] <= 0 or min(weights) < 0:
        raise Mistake(main.node.line, "a loss_weight must be above 0, of further heads at least 0")
    others = sorted(set(weights[1:]))
    if len(others) > 1:
        raise further[0].mistake(
            f"further heads have losses of different loss_weight, {', '.join(f'{each:g}' for each in others[:5])}: "
            "the engine has one for all of them, loss.auxiliary"
        )
    return SAME[main.type], weights[0], others[0] / weights[0] if others else None
