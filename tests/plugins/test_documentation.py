"""The Python in docs/plugins.md runs, and what it defines keeps the promises it is said to keep."""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from engine.options import GROUPS, Component, Data, Loss, Model
from engine.plugins.kernels import Auto, Native
from engine.registry import Registry
from engine.session import Session
from engine.testing import check_augment, small_run
from engine.testing.small import SmallData, SmallSource

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "plugins.md").read_text()


@pytest.fixture(scope="module")
def blocks() -> Iterator[dict[str, Any]]:
    """What all blocks of the page together define; running them runs the checks that they make."""
    module = ModuleType("documented")
    sys.modules["documented"] = module
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/plugins.md", "exec"), vars(module))
    yield vars(module)
    del sys.modules["documented"]


def test_every_group_has_an_example_or_a_check(blocks):
    groups = {c.group for c in blocks.values() if isinstance(c, type) and issubclass(c, Component) and c.group}
    assert groups | {"parallel"} == set(GROUPS)


def test_the_whole_plugin_registers(blocks):
    module = ModuleType("invertlib")
    module.engine_options = blocks["engine_options"]
    assert Registry().register("invertlib", module) == (("augment", "invert"),)
    check_augment(blocks["Invert"]())


def test_the_components_train_together(blocks, tmp_path):
    names = {
        "data": "Ramps",
        "model": "Linear",
        "optim": "RMSprop",
        "schedule": "InverseTime",
        "precision": "BrainFloat",
    }
    parts = {group: blocks[name]() for group, name in names.items()}
    run = small_run(tmp_path, steps=40, augment={"invert": blocks["Invert"](probability=0.1)}, **parts)
    assert run.fit() == "done"
    assert run.best.score > 0.9


@dataclasses.dataclass
class Values(Data):
    """A regression: how bright each third of an image is."""

    def build(self, split):
        class ValueSource(SmallSource):
            classes = ()

            def records(self, indices):
                records = super().records(indices)
                records.targets = records.images.float().view(-1, 3, 12).mean(2) / 255
                return records

        plain = SmallData().build(split)
        return ValueSource(len(plain), plain._key)


def test_the_loss_is_for_regression(blocks, tmp_path):
    run = small_run(tmp_path, steps=60, data=Values(), model=blocks["Linear"](), loss=blocks["Huber"]())
    run.fit()
    assert run.best.name == "absolute_error"
    assert run.best.score < 0.2
    assert issubclass(blocks["Huber"], Loss)
    assert issubclass(blocks["Linear"], Model)
    outputs, targets = torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2)
    # Huber 1964 with delta 1: 0 for the first output, 3 - 1/2 for the second.
    assert float(blocks["Huber"]().build()(outputs, targets)) == pytest.approx(2.5 / 2)


def test_the_kernel_is_one_of_many(blocks, tmp_path):
    """Everything that the page promises of a registered kernel, against torch's own convolutions."""
    unfold = blocks["Unfold"]
    installed = {"native": Native, "unfold": unfold, "auto": Auto}
    shape = (4, 3, 9, 8)
    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    reference = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(4, 2, (1, 3))).double()
    for options, kernels in (
        (unfold(), ["unfold", "unfold"]),
        (Native(layers=["2:unfold"]), ["native", "unfold"]),
    ):
        model = copy.deepcopy(reference)
        assert [row.kernel for row in options.build(installed).apply(model, shape)] == kernels
        torch.testing.assert_close(model(images), reference(images))
        assert torch.autograd.gradcheck(model, (images,), fast_mode=True)
        assert torch.autograd.gradgradcheck(model, (images,), fast_mode=True)
    for row in Auto(cache="none").build(installed).apply(copy.deepcopy(reference), shape):
        assert all(set(times) == {"native", "unfold"} for times in row.milliseconds.values())
    run = small_run(tmp_path, kernels=unfold(), steps=4)
    assert "unfold (chosen)" in run.tables[0]
    assert run.fit() == "done"


def test_the_job_prints(blocks, tmp_path, capsys):
    run = small_run(tmp_path)
    blocks["Shape"]().build()(Session(run.options, Registry(), tmp_path))
    assert capsys.readouterr().out == "(1, 6, 6)\n"
