"""Where layers round: what they read and return, gradients, tied and compiled ones, and those that cannot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import pytest
import torch
from rounding_policies import (
    NEAREST,
    STOCHASTIC,
    Convolutions,
    Table,
    assert_equal,
    exact_images,
    joined,
    step_of,
    watch,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from engine import UsageError
from engine.loader import Position
from engine.quantization import FixedPoint, Role


def test_what_layers_read_and_return_is_on_the_grid_also_after_changes_in_place():
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x += 0.001
            x = functional.avg_pool2d(self.b(x), 2)
            return self.c(functional.max_pool2d(x, 2, stride=1))

    torch.manual_seed(0)
    model = Changing()
    train = step_of(Table(STOCHASTIC), model)
    seen = watch(model)
    train(0, torch.randn(3, 1, 12, 12), [slice(0, 3)])
    assert {f"{layer}.{end}" for layer in "abc" for end in ("input", "output", "gradient")} == set(seen)
    for name, values in joined(seen).items():
        if "gradient" not in name:
            scaled = values.double() * 2**6
            assert torch.equal(scaled, scaled.round()), name
            assert values.abs().max() <= 16


def test_gradients_are_rounded_by_their_own_format():
    """A linear layer's input gradient is what its rounded output gradient gives, rounded again."""
    back = FixedPoint(4, 3)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Sigmoid(), nn.Linear(5, 3, bias=False))
    policy = Table({Role.ACTIVATION_GRADIENT: back})
    policy.convert(model)
    given, error = torch.randn(6, 4), torch.randn(6, 3)
    with policy.computing(Position(), False), policy.forward(torch.arange(6)):
        model(given).backward(error)

    def grid(x: Tensor) -> numpy.ndarray:
        return numpy.clip(numpy.rint(x.detach().double().numpy() * 8) / 8, -8, 8 - 1 / 8)

    hidden = torch.sigmoid(given @ model[0].weight.T)
    at_hidden = torch.from_numpy(grid(torch.from_numpy(grid(error)) @ model[2].weight.double()))
    at_first = torch.from_numpy(grid(at_hidden * (hidden * (1 - hidden)).double()))
    torch.testing.assert_close(model[2].weight.grad.double(), torch.from_numpy(grid(error)).T @ hidden.double())
    torch.testing.assert_close(model[0].weight.grad.double(), at_first.T @ given.double())


class Combined(nn.Module):
    """Takes two tensors, one by name, and returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.given: list[Tensor] = []

    def forward(self, x: Tensor, *, other: Tensor, count: int) -> tuple[Tensor, Tensor]:
        self.given = [x, other]
        return self.weight * x + other * count, other / 3


def test_named_arguments_and_several_results_are_rounded():
    model = Combined()
    policy = Table(NEAREST)
    policy.convert(model)
    x, other = torch.tensor([[0.26, 1.001, 99.0]]), torch.tensor([[0.13, 0.0, -99.0]])
    results = model(x, other=other, count=2)

    def grid(x: Tensor) -> Tensor:
        return torch.from_numpy(numpy.clip(numpy.rint(x.numpy() * 64) / 64, -16, 16 - 1 / 64))

    first, second = grid(x), grid(other)
    assert torch.equal(torch.cat(model.given), torch.cat([first, second]))
    assert torch.equal(torch.cat(results), torch.cat([grid(first + 2 * second), grid(second / 3)]))


def test_a_result_that_is_no_tensor_is_named():
    class Odd(nn.Linear):
        def forward(self, input: Tensor) -> dict[str, Tensor]:
            return {"sums": super().forward(input)}

    model = nn.Sequential(Odd(3, 3))
    Table(NEAREST).convert(model)
    with pytest.raises(UsageError, match="layer '0' \\(Odd\\) returns a dict"):
        model(torch.ones(1, 3))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.GRU(4, 4), "GRU"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (parametrizations.weight_norm(nn.Linear(4, 4)), "Linear"),
    ],
)
def test_a_layer_that_hides_its_sums_is_named(layer, name):
    with pytest.raises(UsageError, match=f"layer 'inner.1' \\(\\w*{name}\\)"):
        Table(NEAREST).convert(nn.ModuleDict({"inner": nn.Sequential(nn.Linear(4, 4), layer)}))


def test_converting_again_rounds_once_and_keeps_what_was_counted():
    policy, model = Table(NEAREST), nn.Sequential(nn.Linear(4, 3))
    for _ in range(2):
        policy.convert(model)
        with policy.computing(Position(), False), policy.forward(torch.arange(5)):
            model(torch.randn(5, 4))
    assert policy.sites.get(Role.ACTIVATION, "0.output").counts[0] == 30


def test_a_tied_parameter_is_rounded_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    train = step_of(policy := Table(STOCHASTIC), model)
    train(0, torch.randn(5, 4), [slice(0, 5)])
    stored = {s.name: int(s.counts[0]) for s in policy.sites if s.role == Role.STORED_WEIGHT}
    assert stored == {"0.weight": 16, "0.bias": 4, "1.bias": 4}


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_model_rounds_alike_and_is_compiled_once():
    images = exact_images(8)

    def weights(compiled: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Convolutions()
        train = step_of(Table(NEAREST), model)
        if compiled:
            model.compile(backend="aot_eager")
        for step in range(4):
            train(step, images, [slice(0, 4), slice(4, 8)], watched=step % 2 == 1)
        return dict(model.named_parameters())

    assert_equal(weights(False), weights(True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
