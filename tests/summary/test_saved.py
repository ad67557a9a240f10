"""Bytes that autograd keeps, against what one can count by hand, and the memory of a whole step."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.budget import measured as measuring
from engine.budget.foresight import Foresight
from engine.budget.ledger import Ledger, workspace
from engine.budget.measured import measured
from engine.ema import WeightAverage
from engine.plugins.summary.rows import table_of

from .tasks import foresight, task_of


def rows(make, image=(3, 8, 8), batch=4):
    return {row.name: row for row in table_of(foresight(make, image), batch).rows}


def test_each_layer_is_charged_with_what_it_is_the_first_to_keep():
    found = rows(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(80, 10),
        )
    )  # fmt: skip
    image, maps = 3 * 64 * 4, 4 * 64 * 4
    assert found["0"].saved == image
    assert found["1"].saved == maps + 2 * 4 * 4 / 4  # its input, and mean and deviation of 4 channels for 4 images
    assert found["2"].saved == maps  # its output
    assert found["3"].saved == 0  # which the convolution needs too
    assert found["4"].saved == 5 * 64 * 4 + 5 * 16 * 8  # its input, and places as int64
    assert found["6"].saved == 5 * 16 * 4
    assert found["0"].multiply_adds == 4 * 64 * 27
    assert found["6"].multiply_adds == 800
    assert found["3"].trainable == 25


def test_what_is_frozen_is_counted_apart_and_keeps_nothing_for_itself():
    class Frozen(nn.Sequential):
        multipliers: ClassVar = {"0.weight": (0.0, 0.0), "0.bias": (0.0, 0.0)}

    table = table_of(foresight(lambda: Frozen(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 10)), (3, 8, 8)), 2)
    assert (table.frozen, table.trainable) == (16, 2570)
    assert table.rows[0].saved == 0
    assert table.saved == 256 * 4


def test_a_layer_that_computes_twice_and_one_that_computes_itself_have_a_row_each():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 10)

        def forward(self, x):
            return self.linear((self.conv(self.conv(x)) ** 2).mean((2, 3)))

    found = rows(Twice)
    assert found["conv"].calls == 2
    assert found["conv"].multiply_adds == 2 * 9 * 64
    assert found["conv"].trainable == 9
    assert found["(own code)"].saved == 3 * 64 * 4  # the square's input


def test_a_ledger_counts_what_exists_and_no_more():
    with Ledger() as ledger:
        one = torch.zeros(1000)
        view = one[10:]
        two = one + 1
        del one
        ledger.forget()
        assert ledger.peak.total == 8000  # the view holds all of the first
        del view
        ledger.forget()
        assert ledger.peak.total == 4000
        two.mul_(2)
        assert ledger.peak.other == 4000


@pytest.mark.parametrize(("channels", "outputs", "larger"), [(3, 20, 32), (20, 8, 32), (17, 40, 48)])
def test_a_convolution_copies_whole_blocks_of_channels(channels, outputs, larger):
    conv = torch.ops.aten.convolution.default
    with FakeTensorMode():
        images, weight = torch.empty(2, channels, 8, 8), torch.empty(outputs, channels, 1, 1)
        args = (images, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        assert workspace(conv, args, conv(*args)) == 2 * larger * 64 * 4


def test_the_parts_of_a_step_follow_from_the_network():
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 50), nn.Sigmoid(), nn.Linear(50, 10))  # noqa: E731
    parameters = 192 * 50 + 50 + 50 * 10 + 10
    memory = foresight(make, (3, 8, 8)).step(16)
    assert memory.parameters == 4 * parameters
    assert memory.images == 16 * 192 * 4
    assert memory.optimiser == 4 * parameters  # momentum
    adam = foresight(make, (3, 8, 8), optim="adamw", run={"ema": 0.9}).step(16)
    assert adam.optimiser == 8 * parameters
    assert adam.average == 4 * parameters
    several = foresight(make, (3, 8, 8)).step(16, accumulate=5)
    assert several.images == 5 * memory.images
    assert several.gradients == 4 * parameters  # those of the micro-batches before


@pytest.mark.parametrize("transfer", ["head", "staged"])
def test_the_step_that_is_measured_is_of_the_stage_that_is_foreseen(monkeypatch, transfer):
    given = task_of("resnet20", (3, 8, 8), transfer=transfer, run={"ema": 0.9})
    stepped, averaged = [], []
    steps = measuring._steps

    def take_note(task, model, batch, accumulate):
        stepped.append(model)
        steps(task, model, batch, accumulate)

    monkeypatch.setattr(measuring, "_steps", take_note)
    monkeypatch.setattr(WeightAverage, "update", lambda self, applied, updates: averaged.append(updates.item()))
    measuring._most(given, 4, 1)
    foreseen, really = Foresight(given).model, stepped[-1]
    trains = {name: p.requires_grad for name, p in foreseen.named_parameters()}
    assert trains == {name: p.requires_grad for name, p in really.named_parameters()}
    assert set(trains.values()) == ({True, False} if transfer == "head" else {True})
    modes = {name: layer.training for name, layer in really.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert modes == {name: foreseen.get_submodule(name).training for name in modes}
    assert set(modes.values()) == {transfer == "staged"}
    assert averaged == [1, 2, 1, 2], "of the small network's steps, and of this one's"


def test_an_update_of_the_average_needs_a_copy_of_the_weights():
    memory = foresight("mlp", (3, 8, 8), hidden=[1000, 1000], transfer="head", run={"ema": 0.9}).step(1)
    assert memory.average == memory.parameters
    assert memory.average <= memory.other < memory.average + 100_000


@pytest.mark.soak
@pytest.mark.parametrize(
    ("model", "image", "transfer", "run"),
    [("mlp", (3, 32, 32), "head", {"ema": 0.9}), ("mlp", (3, 32, 32), "head", {}), ("lenet", (1, 28, 28), "head", {})],
)
def test_a_measured_step_of_a_transfer_takes_what_was_foreseen(model, image, transfer, run):
    given = task_of(model, image, transfer=transfer, run=run, **({"hidden": [4096, 2048]} if model == "mlp" else {}))
    assert measured(given, 2048) == pytest.approx(Foresight(given).step(2048).total, rel=0.05)


@pytest.mark.soak
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_measured_step_takes_what_was_foreseen(optim):
    given = task_of("mlp", (3, 32, 32), hidden=[4096, 2048], optim=optim)
    foreseen = foresight("mlp", (3, 32, 32), hidden=[4096, 2048], optim=optim).step(256).total
    assert foreseen > 200 * 2**20
    assert measured(given, 256) == pytest.approx(foreseen, rel=0.05)
