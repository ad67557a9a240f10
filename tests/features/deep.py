"""The networks of these tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from small_run import build_run, everything
from torch import Tensor, nn

from engine import Model
from engine.plugins.parallel import Data
from engine.plugins.transfer import Head
from engine.registry import Registry


@dataclass
class Deep(Model):
    """A residual network with BatchNorm, dropout before its last layers, an auxiliary head in training if wanted."""

    auxiliary: bool = False

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return Residual(inputs[0], outputs, self.auxiliary)


class Residual(nn.Module):
    def __init__(self, channels: int, outputs: int, auxiliary: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.early_noise = nn.Dropout2d(0.1)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.late = nn.Conv2d(6, 8, 3, padding=1)
        self.noise, self.middle, self.head = nn.Dropout(0.3), nn.Linear(8 * 4, 12), nn.Linear(12, outputs)
        self.aside = nn.Linear(6, outputs) if auxiliary else None

    def forward(self, images: Tensor) -> Any:
        x = self.early_noise(self.norm(self.first(images)).relu())
        x = x + self.inner(x).relu()
        x = nn.functional.adaptive_avg_pool2d(x, 4)
        seen = self.late(x).relu()
        scores = self.head(self.middle(self.noise(nn.functional.adaptive_avg_pool2d(seen, 2).flatten(1))).relu())
        if self.aside is not None and self.training:
            return [scores, self.aside(x.mean((2, 3)))]
        return scores


@dataclass
class Untraceable(Model):
    """A network that looks at its numbers."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return Choosing(inputs[0], outputs, False)


class Choosing(Residual):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images if len(images) > 0 else -images)


@dataclass
class Secret(Model):
    """A network that draws, and does not say so: one number, or one for each image."""

    each: bool

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        network = Noisy(inputs[0], outputs, False)
        network.each = self.each
        return network


class Noisy(Residual):
    each = False

    def forward(self, images: Tensor) -> Any:
        return super().forward(images + (torch.rand_like(images) if self.each else torch.rand(())))


def trained_together(folder: Path) -> list[dict[str, Tensor]]:
    """Train a head in the processes of this group, without and with features; return what training changes."""
    torch.set_num_threads(1)
    states = []
    for name, transfer in (("plain", Head()), ("quick", Head(cache=True, cache_folder=str(folder / "cache")))):
        given: dict[str, Any] = {"augment": ["normalize"], "model": Deep(), "run": {"steps": 4}, "parallel": Data()}
        run = build_run(Registry.load(), folder / name, transfer=transfer, **given)
        run.fit()
        states.append(everything(run))
    return states
