"""Tasks of networks that tests write themselves, or of built-in ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.budget.foresight import Foresight, Task
from engine.options import Model, Options, RunOptions
from engine.registry import Registry

CPU = torch.device("cpu")


@dataclass
class Given(Model):
    """The network that a function makes."""

    make: Any = None

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return self.make()


def task_of(
    model: str | Callable[[], nn.Module], image: tuple[int, int, int], outputs: int = 10, run: Any = None, **given: Any
) -> Task:
    """Return the task of a network, by name or by what makes it; ``given``: fields of a named one."""
    registry = Registry.load()
    usual = {"optim": "sgd", "precision": "float32", "transfer": "none"}
    groups = {group: given.pop(group, name) for group, name in usual.items()}
    if isinstance(model, str):
        network: Model = registry.entry("model", model).options(**given)  # type: ignore[assignment]
    else:
        network = Given(model)
    chosen: dict[str, Any] = {
        group: registry.entry(group, name).options()
        for group, name in {
            "job": "train", "data": "digits", "loss": "cross_entropy", "schedule": "onecycle", "kernels": "native",
            "parallel": "single", **groups,
        }.items()
    }  # fmt: skip
    chosen["data"].threads = 0
    options = Options(augment={}, observe={}, model=network, run=RunOptions(device="cpu", **(run or {})), **chosen)
    return Task(options, image, outputs, CPU)


def foresight(*given: Any, **more: Any) -> Foresight:
    """Return the foresight of such a task."""
    return Foresight(task_of(*given, **more))
