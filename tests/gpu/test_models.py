"""Models on a GPU whose convolutions the engine's kernels compute: ``kernels=auto``, and training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from installed import choices
from torch import nn

from engine import Session, assemble
from engine.options import Kernels, Options, RunOptions
from engine.plugins.augment import Normalize
from engine.plugins.data import Digits
from engine.plugins.jobs import Train
from engine.plugins.kernels import Auto, Winograd
from engine.plugins.losses import CrossEntropy
from engine.plugins.models import ResNet20
from engine.plugins.optim import SGD, OneCycle
from engine.plugins.parallel import Single
from engine.plugins.precision import Float32
from engine.plugins.transfer import NoTransfer
from engine.registry import Registry

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("full_precision")]


def network() -> nn.Sequential:
    """Return layers of all kinds: few channels, 3x3, 1x1, one filter for each channel, large filters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 7, padding=3, groups=64), nn.ReLU(),
        nn.Conv2d(64, 16, 11, padding=5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_auto_measures_chooses_and_computes_what_torch_does(device: torch.device, training: bool) -> None:
    model = network()
    reference = copy.deepcopy(model).double()
    shape = (8, 3, 32, 32)
    chooser = Auto(cache="none").build(choices())
    rows = chooser.apply(model.to(device), shape, training=training)
    assert len(rows) == 5
    assert not any("fails with" in row.reason for row in rows), rows
    images = torch.randn(shape)
    with torch.set_grad_enabled(training), chooser.prepared(model):
        found, expected = model(images.to(device)), reference(images.double())
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-3, atol=1e-4)
    if training:
        found.square().sum().backward()
        expected.square().sum().backward()
        for (name, ours), right in zip(model.named_parameters(), reference.parameters(), strict=True):
            off = (ours.grad.double().cpu() - right.grad).norm() / right.grad.norm()
            assert float(off) < 1e-4, name
    facts = chooser.plan()["layers"].values()
    assert all(("cuda" in entry[0]) is (device.type == "cuda") for entry in facts), "a plan says where it was made"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kernels", [Winograd(tile="2"), Winograd(tile="4"), Auto(cache="none")], ids=["2", "4", "auto"]
)
def test_digits_are_learnt(device: torch.device, kernels: Kernels, tmp_path: Path) -> None:
    options = Options(
        job=Train(), data=Digits(), augment={"normalize": Normalize()}, model=ResNet20(), loss=CrossEntropy(),
        optim=SGD(lr=0.1), schedule=OneCycle(), kernels=kernels, parallel=Single(), precision=Float32(),
        transfer=NoTransfer(), observe={},
        run=RunOptions(epochs=3, batch=64, seed=0, device=str(device), evaluate_every="3 epochs"), out=str(tmp_path),
    )  # fmt: skip
    run = assemble(Session(options, Registry.load(), tmp_path))
    assert run.fit() == "done"
    assert run.best.latest is not None
    assert run.best.latest > 0.8, "a guess is right once in ten"
    assert next(run.model.parameters()).device.type == device.type
    if isinstance(kernels, Winograd):
        assert f": winograd{kernels.tile} (chosen)" in "\n".join(run.tables)
