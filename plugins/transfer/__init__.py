"""Built-in transfer plans: none, head, last_k, full, staged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Transfer, hookimpl, option

if TYPE_CHECKING:
    from engine import interfaces
    from engine.registry import Store

LAYERS = "may be a pattern, and may name a block of layers or one parameter"


@dataclass
class NoTransfer(Transfer):
    """Every parameter trains from the first step to the last."""

    def build(self) -> interfaces.Transfer:
        """Make the transfer plan."""
        from .everything import TrainEverything

        return TrainEverything()


@dataclass
class FromWeights(Transfer):
    """What the plans have in common that start from somebody's weights.

    optim.lr is the rate at which these were trained, or would be: layers that are new have a tenth of it, pretrained
    ones that train a hundredth, the others none (CS231n 2016, lecture 11).
    """

    weights: str = option(
        "",
        "what to start from: run or checkpoint folder, file of a state dict (.pt, .pth, .th, .safetensors), "
        ".caffemodel, or the URL of a file",
    )
    sha256: str = option("", "checksum of that file; downloads are kept under it")
    reinitialize: list[str] = option([], f"layers that take no weights: as [fc7,fc8]; LAYER {LAYERS}")
    new_rate: float = option(0.1, "factor on optim.lr for layers that are new", at_least=0)
    pretrained_rate: float = option(0.01, "factor on optim.lr for pretrained layers that train", at_least=0)
    lr: list[str] = option(
        [], f"other factors on optim.lr, where a layer trains, as LAYER:FACTOR; 0 freezes it; LAYER {LAYERS}"
    )
    weight_decay: list[str] = option([], f"factors on the optimiser's weight decay, as LAYER:FACTOR; LAYER {LAYERS}")
    layer_decay: float = option(
        1.0, "factor on a layer's rate for each step that it is away from the head", above=0, at_most=1
    )
    cache: bool = option(False, "compute what is frozen once, and train on its outputs, which stay on the disk")
    cache_folder: str = option("", "folder of these outputs; by default ~/.cache/conv-engine/features")
    cache_views: int = option(
        0, "where augment draws: views of each image that are drawn and kept; epochs see them in turn", at_least=0
    )


@dataclass
class Head(FromWeights):
    """The head alone trains; everything before it stays frozen."""

    def build(self) -> interfaces.Transfer:
        """Make the transfer plan. Raises UsageError for an entry of lr or weight_decay that is no LAYER:FACTOR."""
        from .plans import Plan

        return Plan(self, [("head", 1.0, None)])


@dataclass
class LastLayers(FromWeights):
    """The last layers train, the head among them; everything before them stays frozen."""

    layers: int = option(2, "how many train: the head and those just before it", at_least=1)

    def build(self) -> interfaces.Transfer:
        """Make the transfer plan. Raises UsageError for an entry of lr or weight_decay that is no LAYER:FACTOR."""
        from .plans import Plan

        return Plan(self, [(f"last_{self.layers}", 1.0, None)])


@dataclass
class Full(FromWeights):
    """Every layer trains, from somebody's weights."""

    def build(self) -> interfaces.Transfer:
        """Make the transfer plan. Raises UsageError for an entry of lr or weight_decay that is no LAYER:FACTOR."""
        from .plans import Plan

        return Plan(self, [("all", 1.0, None)])


@dataclass
class Staged(FromWeights):
    """The head trains first, then the last layers with it, then all: in stages, each with the schedule anew."""

    stages: list[str] = option(
        ["head:0.4", "last_2:0.3", "all:0.3"],
        "what trains, for which share of the run, as WHAT:SHARE or WHAT:SHARE:PATIENCE; WHAT is head, last_K or all",
    )
    patience: int | None = option(
        None, "go on to the next stage after so many evaluations without improvement; null: never early", at_least=1
    )

    def build(self) -> interfaces.Transfer:
        """Make the transfer plan. Raises UsageError for stages that are not written so, or are no whole run."""
        from .plans import Plan
        from .stages import parse_stages

        return Plan(self, parse_stages(self.stages, self.patience))


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in transfer plans."""
    store.add("transfer", "none", NoTransfer)
    store.add("transfer", "head", Head)
    store.add("transfer", "last_k", LastLayers)
    store.add("transfer", "full", Full)
    store.add("transfer", "staged", Staged)
