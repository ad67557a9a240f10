"""Runs of the loop's own tests, with networks whose activations can be made to overflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from small_run import Tiny, build_run
from torch import Tensor, nn

from engine import Model, Run
from engine.registry import Registry

REGISTRY = Registry.load()


@dataclass
class Overflowing(Model):
    """Tiny as a class of its own, whose last activations are ``factor`` times as large in some of its training steps.

    first, last: those steps, counted from 1.
    """

    first: int = 0
    last: int = 0
    factor: float = 1e30

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        return Network(self, Tiny(dropout=0.0).build(inputs, outputs))


class Network(nn.Module):
    """Keeps the classifier of Tiny apart, to reach what it reads."""

    def __init__(self, options: Overflowing, network: nn.Sequential) -> None:
        super().__init__()
        self.options, self.steps = options, 0
        self.features, self.classifier = network[:-1], network[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        x = self.features(images)
        if self.options.last:
            self.steps += self.training
            if self.training and self.options.first <= self.steps <= self.options.last:
                x = x * self.options.factor
        return self.classifier(x)


def run_of(folder: Path, precision: Any, **given: Any) -> Run:
    """Assemble a run on digits of 8x8, with the options of small_run.build_run."""
    return build_run(REGISTRY, folder, precision=precision, **{"model": Overflowing(), **given})


def finite(run: Run) -> bool:
    """Return whether parameters and buffers are."""
    return all(bool(torch.isfinite(value).all()) for value in run.model.state_dict().values())
