"""What processes do in the tests of transfers that they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from networks import trained_names
from torch import Tensor, nn

from engine import Model, Parallel
from engine.plugins.transfer import Staged
from engine.testing import small_run


@dataclass
class Wide(Model):
    """A convolution and three linear layers, without anything that would see what a process has."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs[0], 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16),
            nn.ReLU(), nn.Linear(16, outputs),
        )  # fmt: skip


def staged(out: str, weights: str, parallel: Parallel) -> tuple[dict[str, Tensor], list[list[str]]]:
    """Train in three stages; return the whole weights, and what each stage trained."""
    transfer = Staged(
        weights=weights, reinitialize=["7"], new_rate=1.0, pretrained_rate=0.5,
        stages=["head:0.3", "last_2:0.3", "all:0.4"],
    )  # fmt: skip
    run = small_run(Path(out), parallel=parallel, transfer=transfer, model=Wide(), steps=10, batch=4)
    enter, trained = run.enter_stage, [trained_names(run)]

    def entered(parts: object) -> None:
        enter(parts)
        trained.append(trained_names(parts))

    run.enter_stage = entered
    run.fit()
    with run.strategy.evaluating(run.model):
        found = {name: value.clone() for name, value in run.model.state_dict().items()}
    return found, trained
