"""docs/networks.md: its table has the networks' figures, and its plugin works with what the packages offer."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from engine import UsageError
from engine.registry import Registry

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "networks.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \|[^|]*\| (\d+) \| ([\d,]+) \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("name", "side", "parameters"), ROWS)
def test_the_table_has_the_networks_parameters(name, side, parameters):
    options = Registry.load().entry("model", name).options()
    if hasattr(options, "auxiliary"):
        options.auxiliary = False
    channels, outputs = (1 if name == "lenet" else 3), (1000 if int(side) > 32 else 10)
    with torch.device("meta"):
        model = options.build((channels, int(side), int(side)), outputs)
    assert sum(p.numel() for p in model.parameters()) == int(parameters.replace(",", ""))


def test_the_table_has_every_network():
    listed = {name for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE) for name in row.split(", ")}
    built_in = {name for (group, name), entry in Registry.load().components.items()
                if group == "model" and entry.options.__module__.startswith("engine.plugins.models")}  # fmt: skip
    assert {name.strip("`") for name in listed} >= built_in


class Installed:
    """A stand-in for a package: it notes how it is called, as the package's documentation says it may be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        timm, torchvision, models = (ModuleType(name) for name in ("timm", "torchvision", "torchvision.models"))
        timm.is_model = lambda name: name == "known"
        timm.create_model = self.create_model
        models.list_models = lambda module=None: ["known"] if module is models else ["known", "detector"]
        models.get_model = self.get_model
        torchvision.models = models
        for module in (timm, torchvision, models):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def create_model(self, model_name, pretrained=False, *, num_classes=1000, in_chans=3):
        self.calls.append((model_name, pretrained))
        return nn.Sequential(
            nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )

    def get_model(self, name, *, weights=None, num_classes=1000):
        self.calls.append((name, weights))
        return self.create_model(name, num_classes=num_classes)


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("zoo")
    (block,) = re.findall(r"^```python\n(# zoo/zoo.py\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.setitem(sys.modules, "zoo", module)
    exec(compile(block, "zoo.py", "exec"), vars(module))
    return module


def test_the_plugin_registers_without_the_packages(zoo):
    assert Registry().register("zoo", zoo) == (("model", "torchvision"), ("model", "timm"))


def test_the_plugin_builds_what_the_packages_make(zoo, monkeypatch):
    package = Installed(monkeypatch)
    images = torch.randn(2, 3, 8, 8)
    assert zoo.TorchVision(network="known").build((3, 8, 8), 7)(images).shape == (2, 7)
    assert zoo.Timm(network="known", pretrained=True).build((1, 8, 8), 7)(images[:, :1]).shape == (2, 7)
    assert package.calls == [("known", None), ("known", False), ("known", True)]
    with pytest.raises(UsageError, match=r"model\.network=detector"):
        zoo.TorchVision(network="detector").build((3, 8, 8), 7)
    with pytest.raises(UsageError, match=r"model\.network=other"):
        zoo.Timm(network="other").build((3, 8, 8), 7)
