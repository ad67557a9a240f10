"""Runs of three processes that are ended and resumed: torch's buckets are laid out before the first step that counts.

With two processes any order of adding gives the same bits, with three it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apart
import pytest
import torch
from apart import REAL
from torch import Tensor, nn

from engine import Batch, Key, UsageError
from engine.options import Model, Parallel
from engine.plugins.parallel import Data, Hybrid, LocalSGD
from engine.testing import together


@dataclass
class Deep(Model):
    """Several layers, whose gradients come in another order than they were made in, before those that are split."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        trunk = [nn.Conv2d(inputs[0], 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Tanh()]
        return nn.Sequential(*trunk, nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, outputs))


RUNS: dict[str, tuple[Parallel, dict[str, Any]]] = {
    "data": (Data(), REAL),
    "hybrid d": (Hybrid(scheme="d", layers=["*"]), REAL | {"model": Deep()}),
    "hybrid c": (Hybrid(scheme="c", layers=["*"]), REAL | {"model": Deep()}),
}


@pytest.mark.parametrize("name", RUNS)
def test_three_processes_go_on_as_if_nothing_had_been(tmp_path: Path, name: str) -> None:
    parallel, settings = RUNS[name]
    settings = settings | {"batch": 6, "steps": 6}
    for whole, resumed in together(3, apart.interrupted, tmp_path, parallel, [3], settings):
        assert whole.keys() == resumed.keys()
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


def test_a_step_that_one_process_alone_leaves_out_is_counted_by_it_alone(tmp_path: Path) -> None:
    """Also after a resume, with an average of weights that it has for itself."""
    jobs = (2, apart.interrupted, tmp_path, LocalSGD(every=4), [3, 8], apart.SKIPPING)
    counts = []
    for whole, *resumed in together(*jobs):
        assert any(name.startswith("outer/own/average/") for name in whole)
        for one in resumed:
            assert whole.keys() == one.keys()
            assert [key for key in whole if not torch.equal(whole[key], one[key])] == []
        counts.append([int(whole[f"outer/own/{name}"]) for name in ("updates", "skipped")])
    assert sorted(counts) == [[8, 2], [10, 0]]


class Heads(nn.Module):
    """Two outputs, with BatchNorm before them, and a layer that takes part if it is told to."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.one, self.other = nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Linear(3, 4)
        self.last = nn.Linear(3, 3)
        self.unused = unused

    def forward(self, images: Tensor) -> list[Tensor]:
        values = self.norm(images)
        return [self.one(values), self.other(values if self.unused else self.last(values))]


def settled(unused: bool) -> tuple[str, dict[str, bool], float]:
    """Return what preparing refuses, what is as it was, and how far gradients are from those of all samples."""
    strategy, model = Data(verify_every=0).build(), Heads(unused)
    strategy.example = (2, 3)  # type: ignore[assignment] - as the engine tells it, of other inputs
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = strategy.wrap(strategy.shard(model))
    strategy.telemetry()
    try:
        strategy.prepare(torch.optim.SGD(model.parameters()), Key.of(0))
    except UsageError as error:
        return str(error), {}, 0.0
    same = {
        "state": all(torch.equal(value, before[name]) for name, value in model.state_dict().items()),
        "gradients": all(parameter.grad is None for parameter in model.parameters()),
        "traffic": strategy.telemetry()["communication/bytes"].item() == 0,
    }
    images = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    own = images[2 * strategy.rank :][:2]
    batch = Batch(own, torch.zeros(2), torch.arange(2))
    strategy.forward_backward(lambda part, index: loss_of(network, part.images), [batch], torch.tensor(1.0))
    plain = Heads(unused)
    for part in images.split(2):
        loss_of(plain, part).backward()
    errors = [float((p.grad - q.grad).abs().max()) for p, q in zip(model.parameters(), plain.parameters(), strict=True)]
    return "", same, max(errors)


def loss_of(network: nn.Module, images: Tensor) -> Tensor:
    return torch.stack([head.square().sum() for head in network(images)]).sum()


def test_the_pass_that_counts_for_nothing_leaves_no_trace() -> None:
    for refusal, same, error in together(3, settled, False):
        assert refusal == ""
        assert same == {"state": True, "gradients": True, "traffic": True}
        assert error <= 1e-4


def test_parameters_that_it_does_not_reach_are_named() -> None:
    for rank, (refusal, _, _) in enumerate(together(3, settled, True)):
        assert refusal.startswith(f"parallel=data: no gradient of rank {rank} reaches last.weight, last.bias: take ")
