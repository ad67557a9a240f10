"""``parallel=auto``: measures the model and the group, predicts, and is the strategy of the shortest step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from engine import Key, UsageError
from engine.distributed import current
from engine.interfaces import Precision, Strategy

from .. import Data, Hybrid
from ..hybrid.precisions import require_splittable
from .costs import Setting
from .layers import layers_of, statistics_of
from .measure import BUDGET, measure_link, measure_machine
from .prediction import Case, chosen, predictions
from .report import label, report

SCHEMES = ("a", "d")  # b and c compute in passes, and number torch's draws in a way that is fixed before the model
TOLD = ("example", "precision")  # what the engine sets before ``shard``


def automatic(schemes: Sequence[str]) -> Strategy:
    """Return the strategy that chooses among data and ``schemes``. Raises UsageError for a scheme that is none."""
    if wrong := [scheme for scheme in schemes if scheme not in SCHEMES]:
        raise UsageError(f"parallel.schemes: there is no {', '.join(wrong)}; choose of {', '.join(SCHEMES)}")
    return cast("Strategy", Automatic(schemes))


class Automatic:
    """Decides when it is given the model, and hands every call on to the strategy that it has chosen.

    Until then it is data parallelism, which answers what the loop asks before there is a model. A choice holds for the
    whole run, whatever the later stages train. Shares are equal, as the hybrid schemes want them.
    """

    equal_shares = True
    capturable = False
    example = (0, 0, 0, 0)
    precision: Precision | None = None
    length = 0

    def __init__(self, schemes: Sequence[str]) -> None:
        self._schemes = schemes
        self._chosen: Strategy = Data().build()
        self._decided = current().world == 1
        self._told = ""

    def __getattr__(self, name: str) -> Any:
        """Return what the chosen strategy has."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._chosen, name)

    def shard(self, model: nn.Module) -> nn.Module:
        """Decide, in the first stage; then place the model as the chosen strategy does."""
        if not self._decided:
            self._decided = True
            self._chosen = self._decide(model)
        for name in TOLD:
            setattr(self._chosen, name, getattr(self, name))
        return self._chosen.shard(model)

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Hand on what the engine has told since ``shard``, too."""
        self._chosen.length = self.length
        self._chosen.prepare(optimizer, key)

    def _decide(self, model: nn.Module) -> Strategy:
        began = time.perf_counter()
        group = current()
        case = measured_case(model, self.example)
        made = predictions(case)
        refused = self._refusal(model)
        schemes = [] if refused else [f"hybrid {scheme}" for scheme in self._schemes]
        pick = chosen(made, ["data", *schemes])
        took = time.perf_counter() - began
        lines = [f"parallel=auto: measured in {took:.1f} s, chosen {label(pick)}", refused, report(case, made, pick)]
        # What each has measured differs a little; rank 0's choice holds.
        name, size, self._told = group.exchange([pick.name, pick.group, "\n".join(filter(None, lines))], "a choice")[0]
        return strategy_of(name, size)

    def _refusal(self, model: nn.Module) -> str:
        """Return why no layer can be split in the run's numbers, if that is so."""
        layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        try:
            if self.precision is not None:
                require_splittable(self.precision, layers)
        except UsageError as refusal:
            return f"hybrid is out of the question: {refusal}"
        return ""

    def describe(self) -> str:
        """Return the plan, and what the chosen strategy tells of itself."""
        return "\n\n".join(text for text in (self._told, self._chosen.describe()) if text)


def measured_case(model: nn.Module, example: tuple[int, int, int, int]) -> Case:
    """Return what to plan for, measured in all processes at once, so that they are in each other's way as in training.

    example: (samples, channels, height, width) of a process's share.
    """
    group = current()
    share, *images = example
    if not share:
        raise UsageError("parallel=auto: nobody has told it the images' shape; it is for engine train")
    device = next(model.parameters()).device
    began = time.perf_counter()
    layers = layers_of(model, images)
    link = measure_link(group, device)
    left = BUDGET - (time.perf_counter() - began)
    machine = measure_machine(model, layers, images, share, group.world, left)
    return Case(layers, statistics_of(model), Setting(group.world, share), machine, link)


def strategy_of(name: str, group: int) -> Strategy:
    """Return the strategy of a prediction's name and groups, otherwise with the default options of ``parallel``."""
    if name == "data":
        return Data().build()
    return Hybrid(scheme=name.removeprefix("hybrid "), degree=group).build()
