"""``memory.budget``: what a run is told to change so that a training step fits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import lcm

import torch
from torch import nn

from engine.budget.recompute import Segment
from engine.budget.segments import Selection
from engine.errors import UsageError
from engine.host_to_device import Layout
from engine.interfaces import Augmentation, LossFunction, Source, Strategy
from engine.loader import Loader
from engine.options import Options
from engine.randomness import Key

NOTHING = Selection()
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Setting:
    """A way to make a step: ReLUs that overwrite their input, what is computed twice, micro-batches for one."""

    inplace: tuple[str, ...] = ()
    selection: Selection = NOTHING
    parts: int = 1


AS_IT_IS = Setting()


@dataclass(frozen=True)
class Fitted:
    """What ``memory.budget`` has found: a setting, and the lines that tell of it. By default nothing changes."""

    setting: Setting = AS_IT_IS
    text: str = ""

    def of(self, options: Options) -> Options:
        """Return the options with so many times more and smaller micro-batches."""
        run, parts = options.run, self.setting.parts
        return replace(options, run=replace(run, batch=run.batch // parts, accumulate=run.accumulate * parts))

    def put_into(self, model: nn.Module) -> nn.Module:
        """Return the model, changed in place: names, parameters and results stay as they are."""
        for name in self.setting.inplace:
            model.get_submodule(name).inplace = True  # type: ignore[assignment]
        for segment in segments_of(model, self.setting.selection):
            segment.install()
        return model


def segments_of(model: nn.Module, selection: Selection) -> list[Segment]:
    """Return the segments of a selection, made of the modules that have its names in ``model``."""
    return [Segment([model.get_submodule(call.name) for call in s.calls]) for s in selection.stretches]


def bytes_of(text: str) -> int:
    """Return a size written as 3GiB, 500MB, 2.5G or 800B, of units of 1024. Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(?:i?B)?|B)", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"memory.budget={text}: write a number and its unit, as in memory.budget=3GiB or 800MiB")
    return int(float(match[1]) * UNITS[(match[2] or "").upper()])


def fit(
    options: Options,
    source: Source,
    augmentations: Mapping[str, Augmentation],
    loss: LossFunction,
    device: torch.device,
    strategy: Strategy,
) -> Fitted:
    """Return what lets a step of the options fit into ``memory.budget``; nothing if none is given.

    It depends on the options, the images' shape and the kind of device, so a resume finds the same. Raises UsageError
    if even the least does not fit, naming it, and for options that do not go with a budget.
    """
    if not options.memory.budget:
        return Fitted()
    from engine.budget.foresight import Foresight, Task  # what they import takes a second
    from engine.budget.search import Search

    budget = bytes_of(options.memory.budget)
    if type(strategy).pieces is not Strategy.pieces:
        raise UsageError(
            f"memory.budget={options.memory.budget} is for processes that have the whole model each: choose "
            "parallel=single or data, or leave it out"
        )
    layout = Layout(device, options.precision.build().dtype, options.run.channels_last)
    example = Loader(source, augmentations, Key.of(options.run.seed), batch=options.run.batch, layout=layout).example()
    _, channels, height, width = example.images.shape
    outputs = loss.outputs(len(source.classes)) if source.classes else example.targets.shape[1]
    task = Task(options, (channels, height, width), outputs, device)
    unit = lcm(strategy.world, *(op.group for op in augmentations.values()))
    return Search(Foresight(task), budget, strategy.world, unit).fitted()
