"""What run.compile does to a model: it is compiled, whoever wrote its class."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from engine.compiling import compile_in_place


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu()


@pytest.mark.parametrize("build", [Own, lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()), lambda: nn.Linear(3, 2)])
def test_a_model_is_compiled_in_place_whoever_wrote_its_class(build):
    model, images = build(), torch.randn(4, 3)
    names, expected = list(model.state_dict()), copy.deepcopy(model)(images)
    counter = CompileCounter()  # a backend that counts the graphs it is given, and runs them as they are
    compile_in_place(model, backend=counter)
    assert torch.equal(model(images), expected)
    assert counter.frame_count == 1
    assert torch.equal(model(images), expected)
    assert counter.frame_count == 1
    assert list(model.state_dict()) == names
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
