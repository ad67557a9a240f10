"""What processes do in the tests of whole runs under the hybrid."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hybrid_cases import Net, built, loss_by, micro_batches, own
from torch import Tensor, nn

from engine import Model, Parallel, Transfer, interfaces
from engine.distributed import current
from engine.interfaces import Stage
from engine.options import SaveOptions
from engine.plugins.parallel import Hybrid
from engine.testing import small_run
from engine.testing.processes import bytes_sent


@dataclass
class Small(Model):
    """The network of the tests, with three outputs."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        model = Net()
        model.fc8 = nn.Linear(26, outputs)
        return model


def trained(out: str, parallel: Parallel, steps: int) -> dict[str, Tensor]:
    """Train up to a step, from where the run is; return all whole weights and averages, as they are evaluated."""
    resume = "auto" if Path(out).exists() else "none"
    run = small_run(
        Path(out), parallel=parallel, model=Small(), steps=steps, batch=4, clip=0.5, ema=0.9, resume=resume,
        save=SaveOptions(every="never"),
    )  # fmt: skip
    run.fit()
    return weights_of(run)


def weights_of(run: Any) -> dict[str, Tensor]:
    with run.strategy.evaluating(run.model):
        found = {name: value.clone() for name, value in run.model.state_dict().items()}
    average = run.average.swapped() if run.average else contextlib.nullcontext()
    with average, run.strategy.evaluating(run.model):
        found |= {f"average/{name}": value.clone() for name, value in run.model.state_dict().items()}
    run.lock.close()
    return found


class ThenAll(interfaces.Transfer):
    """First the last layers, then all."""

    def stages(self, steps: int) -> Sequence[Stage]:
        return [Stage("head", steps // 2), Stage("all", steps - steps // 2)]

    def factors(self, model: nn.Module, anatomy: interfaces.Anatomy, stage: Stage) -> dict[str, interfaces.Factors]:
        lr = float(stage.name == "all")
        names = [name for name, _ in model.named_parameters() if name.startswith("features.")]
        return {name: interfaces.Factors(lr) for name in names}


@dataclass
class Stages(Transfer):
    """Two of them."""

    def build(self) -> interfaces.Transfer:
        return ThenAll()


def in_two_stages(out: str, parallel: Parallel) -> dict[str, Tensor]:
    """Train the head, then everything."""
    run = small_run(Path(out), parallel=parallel, model=Small(), transfer=Stages(), steps=6, batch=4)
    run.fit()
    return weights_of(run)


class Wide(nn.Module):
    """So wide that headers on the wire do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 128, 3)
        self.fc6, self.fc7, self.fc8 = nn.Linear(2048, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 512)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.features(images)).flatten(1)
        return self.fc8(torch.relu(self.fc7(torch.relu(self.fc6(x)))))


def sent(scheme: str) -> tuple[float, float, float]:
    """Return bytes of a step: as this process counts them, on the wire by all, and by the formula."""
    rows, world = 64, current().world
    strategy, wrapped, _ = built(Hybrid(scheme=scheme, layers=["*"]), Wide(), rows=rows)
    batch = own(micro_batches(torch.float32, world, (rows,))[0])
    traffic, one, weight = strategy.group.traffic, torch.zeros(1), torch.tensor(1.0)
    strategy.forward_backward(loss_by(wrapped), [batch], weight)  # the first step sorts the buckets
    strategy.group.all_reduce(one)
    start, counted = bytes_sent(), sum(traffic.sent.values())
    strategy.group.all_reduce(one)
    strategy.forward_backward(loss_by(wrapped), [batch], weight)
    told = sum(traffic.sent.values()) - counted - 4
    strategy.group.all_reduce(one)
    wire = bytes_sent() - start
    kinds = {choice.kind for chain in strategy.placed.choices for choice in chain}
    assert kinds == ({"row"} if scheme == "d" else {"column"})
    columns = 2048 / world + 1024 + 1024 + 512 if scheme == "d" else 2048 + 1024 + 1024 + 512 / world
    common = 128 * 9 + 128 + (512 if scheme == "d" else 0)  # what all have: convolution, biases of the last layer
    return told, wire, 8 * (world - 1) * rows * columns + 8 * (world - 1) / world * common


def of_every_scheme() -> list[tuple[float, float, float]]:
    return [sent(scheme) for scheme in "abcd"]
