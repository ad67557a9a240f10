"""What the layers of a trained network give: jobs that keep it, and that train classifiers on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine import Job, hookimpl, option

if TYPE_CHECKING:
    from engine.registry import Store
    from engine.session import Session

CHECKPOINT = "run or checkpoint folder, or weights: .pt, .pth, .th, .safetensors, .caffemodel; empty: transfer.weights"


@dataclass
class Features(Job):
    """Write what layers of a trained network give for every image into files in the folder out=."""

    checkpoint: str = option("", CHECKPOINT)
    layers: list[str] = option([], "names of modules, or patterns: [fire9,'layer3.*']; their outputs are kept")
    split: str = option("train", "whose images", choices=("train", "test"))
    pool: bool = option(False, "average maps over their pixels: a vector for each image")
    format: str = option(
        "npy", "npy: a file for each layer, for numpy.load(mmap_mode='r'); safetensors: one file",
        choices=("npy", "safetensors"),
    )  # fmt: skip

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .dump import features

        return features


@dataclass
class Probe(Job):
    """Train a linear classifier on every depth of a trained network, in one pass, and print the curve."""

    keeps_output: ClassVar[bool] = True
    checkpoint: str = option("", CHECKPOINT)
    depths: str = option(
        "blocks", "where to look: behind each block of layers, or behind every layer that all paths go through",
        choices=("blocks", "layers"),
    )  # fmt: skip
    layers: list[str] = option([], "modules to look behind instead, as names or patterns")
    c: list[float] = option(
        [0.01], "inverse strength of the L2 penalty; of several the best on a fifth of the training images"
    )
    few: int = option(500, "training images of a class below which the advice takes data for scarce", at_least=1)

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .probe import probe

        return probe


@hookimpl
def engine_options(store: Store) -> None:
    """Register the jobs."""
    store.add("job", "features", Features)
    store.add("job", "probe", Probe)
