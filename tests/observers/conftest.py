"""A run that trains nothing: what observers read of one, with its hooks called in the engine's order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from engine import (
    Augment,
    Data,
    Job,
    Kernels,
    Loss,
    Model,
    Observer,
    Optim,
    Options,
    Parallel,
    Precision,
    Schedule,
    Transfer,
)
from engine.interfaces import Batch
from engine.metrics import Clock
from engine.registry import bind, observers


@dataclass
class Net(Model):
    """A network with options of its own."""

    width: int = 8
    dropout: float = 0.5
    batch_norm: bool = True


@dataclass
class Flip(Augment):
    """An augmentation with an option."""

    chance: float = 0.25


def options(**changes: Any) -> Options:
    """Compose by hand what the command line would."""
    composed = Options(
        Job(), Data(), {"flip": Flip()}, Net(), Loss(), Optim(), Schedule(), Kernels(), Parallel(), Precision(),
        Transfer(), {"progress": Observer(), "tensorboard": Observer()}, out="somewhere",
    )  # fmt: skip
    composed.run.log_every = 2
    for name, value in changes.items():
        group, _, field = name.partition("__")
        setattr(getattr(composed, group), field, value)
    return composed


class FakeRun(SimpleNamespace):
    """Six steps of three-step epochs; ``play`` tells an observer about them as the engine's loop does."""

    def play(self, observer: object, until: int = 6, ends: str | None = "done", start: bool = True) -> None:
        """Call the hooks of the steps up to ``until``; without ``ends`` the run is left as a kill leaves it."""
        hook = observers({"it": observer})
        hot = {name: bind(hook, name) for name in ("on_batch", "on_backward_end", "on_step_end")}
        if start:
            hook.on_fit_start(run=self)
        while self.position.step < until:
            step = self.position.step + 1
            if step % 3 == 1:
                self.epoch = step // 3
                hook.on_epoch_start(run=self, epoch=self.epoch)
            images = torch.arange(4 * 64.0).reshape(4, 1, 8, 8) + self.position.step
            tell(hot["on_batch"], self, Batch(images, torch.zeros(4, dtype=torch.int64), torch.arange(4)))
            for p in self.model.parameters():
                p.grad = torch.full_like(p, float(step))
            self.logging = step % 2 == 0
            tell(hot["on_backward_end"], self)
            self.model.zero_grad()
            self.position.step = step
            tell(hot["on_step_end"], self, torch.tensor(1.0), torch.tensor(1.0))
            if step % 2 == 0:
                hook.on_log(run=self, scalars=self.numbers(step))
            if step % 3 == 0:
                score = round(0.9 - 0.01 * step, 2)
                if self.best.score is None:
                    self.best.score, self.best.step = score, step
                hook.on_evaluate_end(run=self, scalars={"test/loss": 2.0 / step, "test/accuracy": score})
                hook.on_epoch_end(run=self, epoch=self.epoch)
        if ends:
            hook.on_fit_end(run=self, outcome=ends)

    @staticmethod
    def numbers(step: int) -> dict[str, float]:
        """The scalars of a log."""
        return {"train/loss": 1.0 / step, "train/accuracy": step / 10, "speed/images_per_second": 1234.5}


def tell(functions: tuple[Callable[..., None], ...], *arguments: Any) -> None:
    """Call a hot hook as the loop does."""
    for function in functions:
        function(*arguments)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., FakeRun]:
    """Return a function that makes a run in ``out`` (by default one folder), at ``step``."""

    def make(out: str = "run", step: int = 0, sweep: bool = False, **changes: Any) -> FakeRun:
        folder = tmp_path / out
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        return FakeRun(
            options=options(**changes),
            config="model:\n  width: 8\n",
            overrides=["model=net", "model.width=8"],
            choices={"job": "train", "data": "toy", "augment": ["flip"], "model": "net", "observe": ["progress"]}
            | {"precision": "float32"},
            precision=SimpleNamespace(remark=""),
            out=folder,
            model=nn.Linear(3, 2),
            loss=SimpleNamespace(metrics={"accuracy": True}),
            source=type("Toy", (list,), {"classes": ("a", "b"), "shape": (1, 8, 8)})(range(12)),
            position=SimpleNamespace(step=step, sample=4 * step, stage=0),
            best=SimpleNamespace(name="accuracy", score=None, step=0),
            epoch=0,
            steps=6,
            steps_per_epoch=3,
            device=torch.device("cpu"),
            strategy=SimpleNamespace(rank=0, world=1),
            clock=Clock(),
            sweep=sweep,
            tables=["layer   kernel\nconv1   native"],
        )

    return make
