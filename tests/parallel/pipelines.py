"""What the processes of the tests of pipelines do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from apart import EXACT
from told import Told
from torch import Tensor, nn
from torch.nn import functional

from engine import Model, Optim, UsageError
from engine.distributed import current
from engine.interfaces import Batch
from engine.options import EvaluateOptions, Parallel, SaveOptions
from engine.plugins.parallel import Pipeline
from engine.plugins.precision import Float64
from engine.testing import small_run
from engine.testing.processes import bytes_sent

WEIGHT = 0.3


class Block(nn.Module):
    """A residual block, which no cut goes through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, values: Tensor) -> Tensor:
        return functional.relu(values + self.outer(torch.tanh(self.inner(values))), inplace=True)


def residual() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()]
        return nn.Sequential(*layers, *(Block(12) for _ in range(4)), nn.Linear(12, 3)).double()


def batches_of(counts: list[int]) -> list[Batch]:
    generator, made = torch.Generator().manual_seed(1), []
    for number, count in enumerate(counts):
        samples = torch.arange(count) + 100 * number
        images = torch.randn(count, 1, 6, 6, generator=generator, dtype=torch.float64)
        made.append(Batch(images * (1 + samples.view(-1, 1, 1, 1) % 7), samples % 3, samples))
    return made


def gradients(schedule: str, counts: list[int], frozen: int) -> dict[str, Any]:
    """Return this process's loss and gradients, the norm, and largest errors beside plain autograd's."""
    strategy, plain = Pipeline(microbatches=4, schedule=schedule).build(), residual()
    plain[:frozen].requires_grad_(False)
    model = strategy.shard(copy.deepcopy(plain))
    strategy.wrap(model)
    asked = []

    def loss_of(batch: Batch, index: int, outputs: Callable[[], Any]) -> Tensor:
        asked.append(index)
        made = outputs()
        if made is None:
            return torch.zeros((), dtype=torch.float64)
        return functional.cross_entropy(made, batch.targets, reduction="sum")

    batches = batches_of(counts)
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    for _ in range(2):  # what is left from one step must not reach the next
        model.zero_grad()
        loss = strategy.forward_backward(loss_of, batches, weight)
    true = sum(functional.cross_entropy(plain(b.images), b.targets, reduction="sum") for b in batches)
    (WEIGHT * true).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    told = strategy.norm(trained)
    before = {name: gradient.clone() for name, gradient in own.items()}
    clipped_from = strategy.clip(trained, 0.5 * float(norm))
    return {
        "asked": asked,
        "loss": float(loss) / float(true),
        "owns": set(own),
        "all": set(expected),
        "errors": max((float((g - expected[n]).norm() / expected[n].norm()) for n, g in before.items()), default=0.0),
        "norm": float((told - norm).abs() / norm),
        "clipped": max((float((own[n] / before[n] - 0.5).abs().max()) for n in own), default=0.0),
        "clipped from": float((clipped_from - norm).abs() / norm),
    }


@dataclass
class Deep(Model):
    """A network of four segments with parameters; BatchNorm if asked for."""

    norm: bool = False
    dropout: float = 0.0
    width: int = 4

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        norm = [nn.BatchNorm2d(self.width)] if self.norm else []
        first = [nn.Conv2d(inputs[0], self.width, 3, bias=not norm), *norm, nn.ReLU(), nn.Conv2d(self.width, 4, 3)]
        first += [nn.Dropout(self.dropout), nn.Tanh()]
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(16, 8), nn.Dropout(self.dropout), nn.Linear(8, outputs))


@dataclass
class Adam(Optim):
    """Adam, whose state has a number for each parameter."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, 0.01)


TRAINED = {
    "optim": Adam(), "precision": Float64(), "batch": 8, "accumulate": 2, "steps": 6, "clip": 0.5, "ema": 0.7,
    "evaluate": EvaluateOptions(),
}  # fmt: skip


def told_by(out: Path, parallel: Parallel, name: str, settings: dict[str, Any]) -> list[float]:
    """Return what a run in a folder of that name tells; what it comes to is in its checkpoints."""
    told = Told()
    run = small_run(out / name, parallel=parallel, observe={"told": told}, **TRAINED | settings)
    run.fit()
    run.lock.close()
    logged = ("train/loss", "train/accuracy", "train/grad_norm")
    return [scalars[name] for scalars in told.logged for name in logged] + [
        scalars[name] for scalars in told.evaluated for name in ("test/loss", "test/accuracy")
    ]


DRAWING = {"model": Deep(norm=True, dropout=0.3), "steps": 6, "ema": 0.8, "batch": 4}


def interrupted(out: Path, parallel: Parallel) -> None:
    """Make a run, the same with evaluations and saves after every step, and the same in two parts."""
    often = {"evaluate_every": "1 step", "save": SaveOptions("1 step"), "log_every": 1}
    several = {"whole": {}, "often": often, "in-two": {"steps": 4}, "in-two again": {"resume": "auto"}}
    for name, settings in several.items():
        run = small_run(out / name.split()[0], parallel=parallel, **DRAWING | settings)
        run.fit()
        run.lock.close()
        current().exchange("the folder is free")


class Branching(nn.Module):
    """Decides by its numbers what it computes."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(36, outputs)

    def forward(self, images: Tensor) -> Tensor:
        made = self.layer(images.flatten(1))
        return made if made.sum() > 0 else -made


@dataclass
class BranchingModel(Model):
    """Such a network."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return Branching(outputs)


def refusals(out: Path) -> list[str]:
    """Return what is said to models and batches that do not fit."""
    said = []
    for settings in ({"model": Deep(norm=True), "batch": 6}, {"model": BranchingModel()}, {}):
        try:
            small_run(out, parallel=Pipeline(), **EXACT | settings).fit()
        except UsageError as error:
            said.append(str(error))
        current().exchange("the folder is free")
    return said


def sent_in(out: Path, steps: int) -> int:
    """Return how many bytes the network carries in so many steps."""
    group = current()
    settings = {"model": Deep(width=1500), "batch": 20, "evaluate_every": "never", "save": SaveOptions("never")}
    run = small_run(out / str(steps), parallel=Pipeline(microbatches=2), steps=steps, log_every=1000, **settings)
    group.exchange("ready")
    before = bytes_sent()
    run.fit()
    group.exchange("done")
    run.lock.close()
    return bytes_sent() - before


def sent_by_steps(out: Path, steps: int) -> int:
    """Return how many bytes so many more steps send."""
    return sent_in(out, 2 * steps) - sent_in(out, steps)
