"""What networks of one bit are tried with: BatchNorm of both signs and of zero, every instruction set of this CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.ops import binary

SETS = [name for name, here in binary.instruction_sets().items() if here]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=SETS)
def isa(request) -> str:
    return request.param


@pytest.fixture
def calibrated():
    """Return a function that gives a network's BatchNorm statistics of some images, and factors of either sign or 0."""

    def calibrate(model: nn.Module, images: torch.Tensor) -> nn.Module:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = None
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                with torch.no_grad():
                    module.weight[::5] = 0
                    module.bias[0] = 0  # with a factor of 0: sign(0) for every sum
            elif isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight)
        with torch.no_grad():
            model.train()(images)
        return model.eval()

    return calibrate
