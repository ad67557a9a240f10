"""A network with an auxiliary head, and small runs on real digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import Observer, Run, Transfer, hookimpl
from engine.plugins.augment import Normalize, PadCrop
from engine.plugins.data import Digits
from engine.plugins.models import SmallCNN
from engine.plugins.optim import SGD
from engine.plugins.transfer import Full, Head, LastLayers, Staged
from engine.testing import small_run


class Branched(nn.Module):
    """Four layers one behind the other, registered in another order; in training an auxiliary head of two layers."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(5, outputs)
        self.auxiliary = nn.ModuleDict({"hidden": nn.Linear(4, 6), "scores": nn.Linear(6, outputs)})
        self.third, self.second, self.first = nn.Linear(4, 5), nn.Conv2d(3, 4, 1), nn.Conv2d(1, 3, 3)
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(4, affine=False)
        self.drop = nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Any:
        x = self.norm1(self.first(images)).relu()
        x = self.norm2(self.second(x)).relu().mean((2, 3))
        scores = self.classifier(self.drop(self.third(x).relu()))
        if self.training:
            return [scores, self.auxiliary["scores"](self.auxiliary["hidden"](x).relu())]
        return scores


class Watch(Observer):
    """Calls ``then(run)`` after each step."""

    def __init__(self, then: Callable[[Run], None]) -> None:
        self.then = then

    def build(self) -> object:
        return self

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        self.then(run)


def run_of(out: Path, then: Callable[[Run], None] | None = None, **given: Any) -> Run:
    """Return a run on digits of 8x8, with everything in it that could move what is frozen."""
    settings = {
        "data": Digits(size=8, threads=0), "model": SmallCNN(width=4, dropout=0.3),
        "augment": {"pad_crop": PadCrop(padding=1), "normalize": Normalize()}, "optim": SGD(lr=0.1, weight_decay=0.1),
        "steps": 10, "batch": 16, "ema": 0.9,
        "clip": 1.0, "evaluate_every": "never",
    }  # fmt: skip
    return small_run(out, **settings | ({"observe": {"watch": Watch(then)}} if then else {}) | given)


def state_of(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def trained_names(run: Run) -> list[str]:
    return [name for group in run.optimizer.param_groups for name in group["names"]]


def rates(run: Run) -> dict[str, float]:
    return {name: float(group["lr"]) for group in run.optimizer.param_groups for name in group["names"]}


def everything(run: Run) -> dict[str, Tensor]:
    """Return all that training changes."""
    state = state_of(run) | {"updates": run.rates.updates.clone()}
    for group in run.optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in run.optimizer.state[parameter].items():
                state[f"optimizer/{name}/{key}"] = torch.as_tensor(value).clone()
    return state | {f"average/{n}": v.clone() for n, v in (run.average.state() if run.average else {}).items()}


KINDS: dict[str, Callable[..., Transfer]] = {
    "head": Head,
    "last_k": LastLayers,
    "full": Full,
    "staged": Staged,
}
