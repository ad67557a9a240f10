"""A policy that is a table, a network, and steps with it as the engine's loop makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.loader import Position
from engine.quantization import FixedPoint, Quantizer, Role, RoundedPrecision
from engine.randomness import Key

VALUES = FixedPoint(5, 6, "stochastic")
WEIGHTS = FixedPoint(3, 6, "stochastic")
STOCHASTIC = {Role.ACTIVATION: VALUES, Role.ACTIVATION_GRADIENT: VALUES, Role.STORED_WEIGHT: WEIGHTS}
NEAREST = {role: FixedPoint(f.il, f.fl) for role, f in STOCHASTIC.items()}


class Table(RoundedPrecision):
    """Rounds each role alike everywhere."""

    def __init__(self, table: Mapping[Role, Quantizer]) -> None:
        super().__init__()
        self.table = table

    def quantizer(self, role: Role, name: str) -> Quantizer | None:
        return self.table.get(role)


class Steps:
    """Makes steps of plain SGD on half the summed squares of the outputs, divided by the batch."""

    def __init__(self, policy: RoundedPrecision, model: nn.Module, seed: int, rate: float) -> None:
        self.policy, self.model = policy, policy.convert(model)
        self.optimizer = torch.optim.SGD(model.parameters(), rate)
        policy.prepare(model, self.optimizer, Key.of(seed))

    def __call__(
        self, step: int, images: Tensor, shares: Sequence[slice], *, watched: bool = False, update: bool = True
    ) -> None:
        """Make the step numbered ``step``, the batch in shares; without ``update`` leave the gradients."""
        count = len(images)
        samples = step * count + torch.arange(count)
        with self.policy.computing(Position(step, step * count), watched):
            for share in shares:
                with self.policy.forward(samples[share]):
                    outputs = self.model(images[share])
                outputs.backward(outputs.detach() / count)
        if update:
            self.update()

    def update(self, bad: float = 0.0) -> None:
        """Update by the gradients that are there, unless ``bad``, and forget them."""
        self.policy.unscale(self.optimizer)
        self.policy.update(self.optimizer, torch.tensor(bad))
        self.optimizer.zero_grad(set_to_none=True)


def step_of(policy: RoundedPrecision, model: nn.Module, seed: int = 1, rate: float = 0.125) -> Steps:
    """Return what makes steps, the model converted and prepared."""
    return Steps(policy, model, seed, rate)


def exact_images(count: int) -> Tensor:
    """Return images [count, 2, 8, 8] on a grid of 2^-5, so that small networks' sums are exact in float32."""
    return torch.randint(-32, 33, (count, 2, 8, 8), generator=torch.Generator().manual_seed(1)) / 32


class Convolutions(nn.Module):
    """Two convolutions and a linear layer; every sum is exact in float32 where numbers are on coarse grids."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.max_pool2d(torch.relu(self.first(images)), 2)
        return self.last(torch.relu(self.second(hidden)).flatten(1))


def watch(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return what layers read and return, and the gradients of what they return, as they come."""
    seen: dict[str, list[Tensor]] = {}

    def note(name: str, value: Tensor) -> None:
        seen.setdefault(name, []).append(value.detach().clone())

    for name, layer in model.named_children():
        layer.register_forward_pre_hook(lambda layer, args, name=name: note(f"{name}.input", args[0]))

        def returned(layer, args, output, name=name) -> None:
            note(f"{name}.output", output)
            if output.requires_grad:
                output.register_hook(lambda gradient: note(f"{name}.gradient", gradient))

        layer.register_forward_hook(returned)
    return seen


def joined(seen: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(values) for name, values in seen.items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
