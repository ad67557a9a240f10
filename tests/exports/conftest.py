"""The command line with a foreign plugin of two networks of one bit beside the built-in ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hydra.core.config_store import ConfigStore
from torch import nn

from engine import Model, cli, hookimpl, option
from engine.binary.modules import BinaryConv2d, BinaryLinear, FixedPointInput, Sign
from engine.options import GROUPS
from engine.registry import Registry


@dataclass
class OneBit(Model):
    """Convolutions and a linear layer of one bit."""

    fixed: bool = option(True, "round the inputs to 8 bits")
    odd: bool = option(False, "put in a layer that cannot be packed")

    def build(self, inputs, outputs) -> nn.Module:
        first = [FixedPointInput(5)] if self.fixed else []
        odd = [nn.Softshrink()] if self.odd else []
        return nn.Sequential(
            *first, BinaryConv2d(inputs[0], 33, 3, padding=1, padding_value=0), nn.MaxPool2d(2), nn.BatchNorm2d(33),
            Sign(), BinaryConv2d(33, 40, 3, padding=1, scaled=True), nn.BatchNorm2d(40), *odd, Sign(), nn.Flatten(),
            BinaryLinear(40 * (inputs[1] // 2) * (inputs[2] // 2), outputs), nn.BatchNorm1d(outputs),
        )  # fmt: skip


@hookimpl
def engine_options(store) -> None:
    store.add("model", "onebit", OneBit)


@pytest.fixture
def engine(engine, monkeypatch) -> Iterator[object]:
    registry = Registry.load()
    registry.register("onebit", SimpleNamespace(engine_options=engine_options))
    monkeypatch.setattr(cli.Registry, "load", classmethod(lambda cls: registry))
    yield engine
    for group in GROUPS:  # the store is Hydra's and outlives the command
        ConfigStore.instance().repo.pop(group, None)


@pytest.fixture
def trained(engine):
    """Return a function that trains a network for a few steps into out=run."""

    def train(*words: str) -> None:
        code, _, told = engine("train", "data.size=8", "run.batch=128", "run.epochs=1", *words, "out=run")
        assert code == 0, told

    return train
