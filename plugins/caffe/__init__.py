"""Caffe: networks from prototxt files, weights from .caffemodel files, solvers, and importing them as checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import Job, Model, Schedule, hookimpl, option, required

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.registry import Store
    from engine.session import Session

POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid")


@dataclass
class CaffeNetwork(Model):
    """The network that a Caffe prototxt describes, deploy or train_val."""

    prototxt: str = required("prototxt file, or its text")
    phase: str = option("TRAIN", "phase whose layers there are", choices=("TRAIN", "TEST"))
    stages: list[str] = option([], "stages of the net's state, for rules with stage: in a prototxt")
    mean: str = option(
        "", "mean.binaryproto that is subtracted from images first, and kept with the weights; stored: it is among them"
    )
    mean_scale: float = option(1.0, "what that mean is multiplied by, as pixels are; of stored: already done", above=0)

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network. Raises UsageError naming the file, the line, and a layer that is not supported."""
        from .building import network

        return network(self, inputs, outputs)


@dataclass
class CaffeSchedule(Schedule):
    """The learning rate as one of Caffe's policies (lr_policy of a solver) has it, counted in steps."""

    policy: str = option("step", "Caffe's lr_policy", choices=POLICIES)
    gamma: float = option(0.1, "gamma of step, exp, inv, multistep and sigmoid", at_least=0)
    power: float = option(1.0, "power of inv and poly")
    stepsize: int = option(0, "steps between two drops of step, or the middle of sigmoid", at_least=0)
    stepvalues: list[int] = option([], "steps at which multistep drops, ascending")
    max_iter: int = option(0, "step at which poly reaches 0; 0: the run's end", at_least=0)

    def build(self, updates: int) -> Callable[[int], float]:
        """Return the factor of each update. Raises UsageError for what a policy lacks."""
        from .schedule import factor

        return factor(self, updates)


@dataclass
class Import(Job):
    """Make an engine checkpoint of Caffe's weights, or an experiment of Caffe's solver, in the folder out=."""

    caffe: str = option("", "the .caffemodel")
    prototxt: str = option("", "its network, deploy or train_val; with a solver: instead of the one that it names")
    mean: str = option("", "a mean.binaryproto that is subtracted, pixel by pixel")
    mean_values: list[float] = option(
        [], "what is subtracted instead, 0 to 255, in the order of the network's channels"
    )
    channels: str | None = option(
        None, "order of colours that the network is made for; null: a guess, told", choices=("bgr", "rgb")
    )
    scale: float | None = option(None, "what pixels are multiplied by after that; null: as the prototxt says, or 1")
    resize: list[int] = option(
        [], "shorter side that images are resized to, or height and width; by default a guess, told"
    )
    crop: int | None = option(
        None, "side of the middle that is looked at; 0: all; null: the network's size", at_least=0
    )
    inputs: list[int] = option([], "channels, height, width that the network takes, where the prototxt does not say")
    classes: str = option("", "file with the classes' names, one a line, for the record")
    solver: str = option("", "a solver prototxt")
    state: str = option("", "a .solverstate, to go on with training; needs caffe, solver and data=")

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .importing import import_caffe

        return import_caffe


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a .caffemodel by name. Raises UsageError naming a damaged file."""
    from .weights import read_caffemodel

    return read_caffemodel(path)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the network, the schedule, the job, and the reader of weights."""
    store.add("model", "caffe", CaffeNetwork)
    store.add("schedule", "caffe", CaffeSchedule)
    store.add("job", "import", Import)
    store.add_reader(".caffemodel", read_weights)
