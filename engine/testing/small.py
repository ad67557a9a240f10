"""A real run made of tiny parts, one for every group, so that one component can be tried on its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from engine import interfaces
from engine.assembly import assemble
from engine.interfaces import Batch, Records
from engine.options import (
    Data,
    Job,
    Kernels,
    Loss,
    Model,
    Optim,
    Options,
    Parallel,
    Precision,
    RunOptions,
    Schedule,
    Transfer,
    check,
)
from engine.randomness import Key, uniform
from engine.registry import Registry
from engine.run import Run
from engine.session import Session

RUN: dict[str, Any] = {"steps": 10, "batch": 4, "log_every": 2, "device": "cpu"}


def small_run(out: Path, **settings: Any) -> Run:
    """Return a run, ready for ``fit()``, that takes about a tenth of a second.

    By default: 10 steps of 4 images (1x6x6, 3 classes, 5 steps an epoch) through a network with a convolution,
    BatchNorm and dropout, at a constant rate, on the CPU, observed by nobody. settings: components by their
    group (``augment={"mixup": Mixup()}``, ``model=MyNet()``), options of ``run`` by their own name
    (``steps=4, clip=1.0``), and ``save`` and ``resume``. The run folder ``out`` is ours until ``run.lock.close()``.
    Raises TypeError for a setting that there is none of, UsageError for a bad value.
    """
    names = {f.name for f in fields(RunOptions)}
    run = RunOptions(**RUN | {name: value for name, value in settings.items() if name in names})
    parts: dict[str, Any] = {
        "job": Job(), "data": SmallData(threads=0), "augment": {}, "model": SmallModel(), "loss": SmallLoss(),
        "optim": SmallOptim(), "schedule": SmallSchedule(), "kernels": SmallKernels(), "parallel": SmallParallel(),
        "precision": SmallPrecision(), "transfer": SmallTransfer(), "observe": {},
    }  # fmt: skip
    parts |= {name: value for name, value in settings.items() if name not in names}
    options = Options(**parts, run=run, out=str(out))
    check(options)
    choices = {group: list(part) if isinstance(part, dict) else type(part).__name__ for group, part in parts.items()}
    return assemble(Session(options, Registry(), out, choices=choices, config=json.dumps(choices)))


class SmallSource(interfaces.Source):
    """Noise in which one third of the image, the class's, is brighter."""

    classes = ("top", "middle", "bottom")
    shape = (1, 6, 6)

    def __init__(self, length: int, key: Key) -> None:
        self._length, self._key = length, key
        self.fingerprint = f"small-{length}-{key.value}"

    def __len__(self) -> int:
        return self._length

    def records(self, indices: Sequence[int]) -> Records:
        """Return uint8 images made on the spot."""
        records = torch.tensor(list(indices), dtype=torch.int64)
        targets = records % 3
        images = uniform(self._key, records, 36).view(-1, 1, 6, 6) * 128
        for third in range(3):
            images[targets == third, :, 2 * third : 2 * third + 2] += 127
        return Records("raw", images.to(torch.uint8), targets)


@dataclass
class SmallData(Data):
    """20 images to train, 8 to test."""

    def build(self, split: str) -> interfaces.Source:
        """Make a split."""
        return SmallSource(20 if split == "train" else 8, Key.of(0).at(split))


@dataclass
class SmallModel(Model):
    """One convolution with BatchNorm, dropout and a linear layer."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network; it takes images of any size."""
        layers = [nn.Conv2d(inputs[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(3)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.25), nn.Linear(36, outputs))


class CrossEntropy(interfaces.LossFunction):
    """Cross-entropy with accuracy."""

    metrics = {"accuracy": True}  # noqa: RUF012 - an attribute of the Protocol
    reduction = "mean"
    softmax = True

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the summed loss."""
        return functional.cross_entropy(outputs, targets, reduction="sum")

    def measure(self, outputs: Any, targets: Tensor) -> Sequence[Tensor]:
        """Return how many are right."""
        classes = targets.argmax(1) if targets.is_floating_point() else targets
        return [(outputs.argmax(1) == classes).sum()]


@dataclass
class SmallLoss(Loss):
    """Cross-entropy."""

    def build(self) -> interfaces.LossFunction:
        """Make the loss."""
        return CrossEntropy()


@dataclass
class SmallOptim(Optim):
    """SGD with momentum."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make the optimiser."""
        return momentum_sgd(groups, self.lr)


def momentum_sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Return fused SGD with momentum, whose buffers exist from the start.

    Otherwise torch makes them in the first step, and of uninitialised memory if that step is masked.
    """
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


@dataclass
class SmallSchedule(Schedule):
    """The same rate throughout."""

    def build(self, updates: int) -> Callable[[int], float]:
        """Return the factor 1."""
        return lambda update: 1.0


class KeepNative(interfaces.KernelChooser):
    """Leaves every convolution to torch."""

    def apply(
        self, model: nn.Module, inputs: tuple[int, int, int, int], **settings: Any
    ) -> Sequence[interfaces.KernelRow]:
        """Return a row for each convolution."""
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        return [interfaces.KernelRow(layer, "native", "torch's own") for layer in layers]


@dataclass
class SmallKernels(Kernels):
    """torch's convolutions."""

    def build(self, installed: Mapping[str, type[Kernels]] = MappingProxyType({})) -> interfaces.KernelChooser:
        """Make the chooser."""
        return KeepNative()


class OneProcess(interfaces.Strategy):
    """Micro-batches one after the other, in this process."""

    rank, world = 0, 1

    def forward_backward(
        self, loss_of: Callable[[Batch, int], Tensor], batches: Sequence[Batch], weight: Tensor
    ) -> Tensor:
        """Add up the gradients."""
        total = torch.zeros_like(weight)
        for index, batch in enumerate(batches):
            loss = loss_of(batch, index)
            (loss * weight).backward()
            total += loss.detach()
        return total

    def clip(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        """Clip by the global norm."""
        norm = self.norm(parameters)
        clip_grads_with_norm_(parameters, largest, norm)
        return norm

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the global norm."""
        return get_total_norm([p.grad for p in parameters if p.grad is not None])


@dataclass
class SmallParallel(Parallel):
    """One process."""

    def build(self) -> interfaces.Strategy:
        """Make the strategy."""
        return OneProcess()


class SinglePrecision(interfaces.Precision):
    """float32 throughout."""

    dtype = torch.float32


@dataclass
class SmallPrecision(Precision):
    """float32."""

    def build(self) -> interfaces.Precision:
        """Make the policy."""
        return SinglePrecision()


class OneStage(interfaces.Transfer):
    """Everything trains."""


@dataclass
class SmallTransfer(Transfer):
    """No transfer."""

    def build(self) -> interfaces.Transfer:
        """Make the plan."""
        return OneStage()
