"""What a step costs whose numbers are rounded, beside the same step in float32: forward, backward, update, all counts.

One process and one thread; images are random, what is measured hardly depends on them. A turn is one step. Steps are
those between two logs; one that telemetry is read after, which measures noise as well, is timed apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from harness import Report, Side, interleave
from torch import Tensor, nn
from torch.nn import functional

from engine import interfaces
from engine.loader import Position
from engine.plugins.optim.optimizers import FusedSGD
from engine.plugins.precision import DynamicFixed, Fixed, Float32
from engine.randomness import Key

FLOAT, FIXED, DYNAMIC, WATCHED = "float32", "fixed <6,10>, stochastic", "dynamic_fixed 10/12", ", watched"
TARGETS = {FIXED: 1.2, DYNAMIC: 1.6}


@dataclass(frozen=True)
class Network:
    """A network, the shape of a batch for it, and the classes it tells apart."""

    build: Callable[[], nn.Module]
    batch: tuple[int, int, int, int]


def gupta() -> nn.Module:
    """Return the CNN of Gupta et al. 2015 for MNIST."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def cifar() -> nn.Module:
    """Return three blocks of two 3x3 convolutions with BatchNorm, for CIFAR-10."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


NETWORKS = {
    "Gupta's CNN, 28x28, batch 100": Network(gupta, (100, 1, 28, 28)),
    "CNN 32-64-128 with BatchNorm, 32x32, batch 64": Network(cifar, (64, 3, 32, 32)),
}


class Trainer:
    """A network in training, step by step as the engine's loop makes them."""

    def __init__(self, network: Network, precision: interfaces.Precision) -> None:
        torch.manual_seed(0)
        self._precision, self._step = precision, 0
        self._model = precision.convert(network.build())
        self._optimizer = FusedSGD([{"params": list(self._model.parameters())}], lr=0.01, momentum=0.9)
        precision.prepare(self._model, self._optimizer, Key.of(0))
        self._images, self._targets = torch.randn(network.batch), torch.randint(10, network.batch[:1])
        self._weight, self._good = torch.tensor(1 / network.batch[0]), torch.zeros(())

    def step(self, watched: bool = False) -> None:
        """Make a step."""
        count = len(self._images)
        with self._precision.computing(Position(self._step, self._step * count), watched):
            with self._precision.forward(self._step * count + torch.arange(count)):
                loss: Tensor = functional.cross_entropy(self._model(self._images), self._targets, reduction="sum")
            loss.backward(self._weight)  # type: ignore[no-untyped-call]
        self._precision.unscale(self._optimizer)
        self._precision.update(self._optimizer, self._good)
        for parameter in self._model.parameters():
            parameter.grad = None
        self._step += 1


def measure(report: Report, quick: bool) -> None:
    """Both networks, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, network in NETWORKS.items():
            _compare(report, name, network, 5 if quick else 100)
    finally:
        torch.set_num_threads(threads)


def _compare(report: Report, name: str, network: Network, rounds: int) -> None:
    trainers = {
        FLOAT: Trainer(network, Float32().build()),
        FIXED: Trainer(network, Fixed().build()),
        DYNAMIC: Trainer(network, DynamicFixed(calibration=5, calibration_period=1, period=10).build()),
    }
    for trainer in trainers.values():
        for _ in range(10):  # the calibration among them
            trainer.step()
    sides: Mapping[str, Side] = {side: trainer.step for side, trainer in trainers.items()}
    watched: Mapping[str, Side] = {side + WATCHED: _watched(trainers[side]) for side in TARGETS}
    times = interleave({**sides, **watched}, rounds, warmup=2)
    rows = [[side, times.spread(side).text(1e3, 2), times.ratio(side, FLOAT).text(digits=2)] for side in times]
    report.table(f"a step of {name}", ["", "ms", f"times {FLOAT}"], rows)
    for side, target in TARGETS.items():
        report.claim(f"{name}: {side}, a step", times.ratio(side, FLOAT).median, target, f"x {FLOAT}")


def _watched(trainer: Trainer) -> Side:
    return lambda: trainer.step(watched=True)
