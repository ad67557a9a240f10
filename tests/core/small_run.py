"""A small real run: digits at 8x8, a network with BatchNorm and dropout, every random part of training switched on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine import Model, Observer, Run, Session, assemble, hookimpl
from engine.options import EvaluateOptions, Options, RunOptions, SaveOptions
from engine.registry import Registry


@dataclass
class Tiny(Model):
    """A convolution, BatchNorm, dropout and a classifier."""

    width: int = 8
    dropout: float = 0.2

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs[0], self.width, 3, padding=1, bias=False),
            nn.BatchNorm2d(self.width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(self.dropout),
            nn.Linear(self.width * 16, outputs),
        )


@dataclass
class Watch(Observer):
    """Keeps, for every step, the samples, the augmented images and the loss; calls ``then`` after each step."""

    then: Any = None

    def __post_init__(self) -> None:
        self.samples: list[torch.Tensor] = []
        self.images: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []
        self.events: list[str] = []

    def build(self) -> object:
        return self

    @hookimpl
    def on_batch(self, batch: Any) -> None:
        self.samples.append(batch.samples)
        self.images.append(batch.images)

    @hookimpl
    def on_step_end(self, run: Any, loss: torch.Tensor) -> None:
        self.losses.append(loss)
        if self.then:
            self.then(run)


def build_run(
    registry: Registry, out: Path, *, resume: str = "none", observe: dict[str, Any] | None = None, **given: Any
) -> Run:
    """Assemble a run: component choices by group (a name or options); ``run``, ``save``, ``evaluate`` as dicts."""

    def choice(group: str, default: str) -> Any:
        chosen = given.get(group, default)
        return registry.entry(group, chosen).options() if isinstance(chosen, str) else chosen

    data = given.get("data") or registry.entry("data", "digits").options(size=8, threads=given.get("threads", 0))
    names = given.get("augment", ["pad_crop", "flip", "normalize"])
    options = Options(
        job=registry.entry("job", "train").options(),
        data=data,
        augment={name: registry.entry("augment", name).options() for name in names},
        model=given.get("model") or Tiny(),
        loss=choice("loss", "cross_entropy"),
        optim=choice("optim", "sgd"),
        schedule=choice("schedule", "onecycle"),
        kernels=choice("kernels", "native"),
        parallel=choice("parallel", "single"),
        precision=choice("precision", "float32"),
        transfer=choice("transfer", "none"),
        observe=observe or {},
        run=RunOptions(**{"batch": 128, "epochs": 2, "log_every": 5, **given.get("run", {})}),
        save=SaveOptions(**given.get("save", {})),
        marginalize=given.get("marginalize", {}),
        evaluate=EvaluateOptions(**given.get("evaluate", {})),
        out=str(out),
        resume=resume,
    )
    choices = {"model": "tiny", "data": "digits", "augment": names}
    return assemble(Session(options, registry, out, overrides=["a=1"], choices=choices, config="a: 1\n"))


def everything(run: Run) -> dict[str, torch.Tensor]:
    """Return all that training changes: weights, buffers, optimiser state, averages, counters."""
    state = {f"model/{name}": value.clone() for name, value in run.model.state_dict().items()}
    for group in run.optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in run.optimizer.state[parameter].items():
                state[f"optimizer/{name}/{key}"] = torch.as_tensor(value).clone()
    if run.average:
        state |= {f"average/{name}": value.clone() for name, value in run.average.state().items()}
    return state | {"updates": run.rates.updates.clone()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"differ: {different}"
