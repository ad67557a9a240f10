"""Optimisers against their papers' arithmetic in float64, and steps that are cancelled on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine import UsageError
from engine.masking import maskable, masked_step
from engine.options import Optim
from engine.plugins.optim import SGD, Adagrad, AdamW

GOOD, BAD = torch.zeros(()), torch.ones(())
CHOICES = [
    SGD(weight_decay=0.1),
    SGD(nesterov=True, weight_decay=0.1),
    SGD(momentum=0.0),
    AdamW(weight_decay=0.1),
    Adagrad(weight_decay=0.1),
]


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((3, 4), (5,))]


def groups(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": [weights[0]], "names": ["layer.weight"], "decays": True},
        {"params": [weights[1]], "names": ["layer.bias"], "decays": False},
    ]


def gradients(weights: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)


def tensor_rates(optimizer: Optimizer) -> None:
    """Do as the engine does: rates are scalars on the device."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)


def everything(weights: list[nn.Parameter], optimizer: Optimizer) -> list[Tensor]:
    state = [value for weight in weights for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
    return [value.detach().clone() for value in (*weights, *state)]


def sgd_by_hand(
    weight: Tensor, grads: list[Tensor], lr: float, momentum: float, nesterov: bool, decay: float
) -> Tensor:
    velocity = torch.zeros_like(weight)
    for grad in grads:
        grad = grad + decay * weight
        velocity = momentum * velocity + grad
        weight = weight - lr * (grad + momentum * velocity if nesterov else velocity)
    return weight


def adamw_by_hand(weight: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for t, grad in enumerate(grads, 1):
        weight = weight * (1 - lr * decay)
        first = 0.9 * first + 0.1 * grad
        second = 0.999 * second + 0.001 * grad**2
        weight = weight - lr * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return weight


def adagrad_by_hand(weight: Tensor, grads: list[Tensor], lr: float, initial: float, decay: float) -> Tensor:
    squares = torch.full_like(weight, initial)
    for grad in grads:
        grad = grad + decay * weight
        squares = squares + grad**2
        weight = weight - lr * grad / (squares.sqrt() + 1e-10)
    return weight


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("options", CHOICES)
def test_updates_are_the_papers_and_only_what_decays_is_decayed(
    options: SGD | AdamW | Adagrad, decay_all: bool
) -> None:
    options = type(options)(**{**vars(options), "lr": 0.25, "decay_all": decay_all})
    weights = parameters()
    starts = [weight.detach().clone() for weight in weights]
    optimizer = options.build(groups(weights))
    tensor_rates(optimizer)
    given: list[list[Tensor]] = [[], []]
    for step in range(4):
        gradients(weights, step)
        for weight, kept in zip(weights, given, strict=True):
            assert weight.grad is not None
            kept.append(weight.grad.clone())
        masked_step(optimizer, GOOD)
    for index, (weight, start) in enumerate(zip(weights, starts, strict=True)):
        decay = options.weight_decay if index == 0 or decay_all else 0.0
        if isinstance(options, SGD):
            expected = sgd_by_hand(start, given[index], 0.25, options.momentum, options.nesterov, decay)
        elif isinstance(options, Adagrad):
            expected = adagrad_by_hand(start, given[index], 0.25, options.initial, decay)
        else:
            expected = adamw_by_hand(start, given[index], 0.25, decay)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", CHOICES)
def test_a_cancelled_step_changes_no_bit(options: Optim, dtype: torch.dtype) -> None:
    weights = parameters(dtype)
    optimizer = options.build(groups(weights))
    tensor_rates(optimizer)
    assert maskable(optimizer)
    for step in range(2):
        gradients(weights, step)
        masked_step(optimizer, GOOD)
    before = everything(weights, optimizer)
    for weight in weights:
        weight.grad = torch.full_like(weight, float("nan"))
    masked_step(optimizer, BAD)
    for value, kept in zip(everything(weights, optimizer), before, strict=True):
        assert torch.equal(value, kept)


@pytest.mark.parametrize("options", CHOICES)
def test_training_whose_first_step_is_cancelled_goes_on_as_if_it_had_not_been(options: Optim) -> None:
    """Torch's SGD would go on with uninitialised momentum."""
    undisturbed, disturbed = parameters(), parameters()
    optimizers = [options.build(groups(weights)) for weights in (undisturbed, disturbed)]
    for optimizer in optimizers:
        tensor_rates(optimizer)
    for weight in disturbed:
        weight.grad = torch.full_like(weight, float("inf"))
    masked_step(optimizers[1], BAD)
    for weight in disturbed:
        assert all(value.abs().sum() == 0 for value in optimizers[1].state[weight].values())
    for step in range(3):
        for weights, optimizer in zip((undisturbed, disturbed), optimizers, strict=True):
            gradients(weights, step)
            masked_step(optimizer, GOOD)
    for one, other in zip(everything(undisturbed, optimizers[0]), everything(disturbed, optimizers[1]), strict=True):
        assert torch.equal(one, other)


def test_the_rate_is_read_from_its_tensor_at_every_step() -> None:
    weights = parameters()
    optimizer = SGD(momentum=0.0, weight_decay=0.0).build(groups(weights))
    tensor_rates(optimizer)
    for rate in (0.5, 0.0, 2.0):
        for group in optimizer.param_groups:
            group["lr"].fill_(rate)
        gradients(weights, 0)
        expected = [weight.detach() - rate * weight.grad for weight in weights]
        masked_step(optimizer, GOOD)
        for weight, value in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.detach(), value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [SGD(nesterov=True, weight_decay=0.1), SGD(momentum=0.0, weight_decay=0.1)])
def test_sgd_is_torchs_own_where_gradients_come_and_go(options: SGD) -> None:
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    optimizer = options.build(groups(ours))
    tensor_rates(optimizer)
    reference = torch.optim.SGD(
        [{"params": theirs[0], "weight_decay": 0.1}, {"params": theirs[1], "weight_decay": 0.0}],
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
    )
    for step, reached in enumerate([(0, 1), (0,), (1,), (0, 1)]):
        for weights in (ours, theirs):
            gradients(weights, step)
            for index in {0, 1} - set(reached):
                weights[index].grad = None
        masked_step(optimizer, GOOD)
        reference.step()
        for weight, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", CHOICES)
def test_state_that_was_loaded_is_the_state_that_is_used(options: Optim) -> None:
    trained, resumed = parameters(), parameters()
    optimizers = [options.build(groups(weights)) for weights in (trained, resumed)]
    for optimizer in optimizers:
        tensor_rates(optimizer)
    for step in range(3):
        gradients(trained, step)
        masked_step(optimizers[0], GOOD)
    gradients(resumed, 9)
    masked_step(optimizers[1], GOOD)
    with torch.no_grad():
        for weight, value in zip(resumed, trained, strict=True):
            weight.copy_(value)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for weights, optimizer in zip((trained, resumed), optimizers, strict=True):
        gradients(weights, 3)
        masked_step(optimizer, GOOD)
    for one, other in zip(everything(trained, optimizers[0]), everything(resumed, optimizers[1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", CHOICES)
def test_filters_in_channels_last_order_are_updated_alike(options: Optim) -> None:
    """The fused kernels go through memory in order, whatever the strides."""
    images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        conv = nn.Conv2d(3, 4, 3, dtype=torch.float64).to(memory_format=layout)
        optimizer = options.build(groups([conv.weight, conv.bias]))
        tensor_rates(optimizer)
        for _ in range(3):
            conv(images.contiguous(memory_format=layout)).square().sum().backward()
            masked_step(optimizer, GOOD)
            optimizer.zero_grad()
        results.append(conv.weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


class Strict(Optimizer):
    """A third party's optimiser: it takes numbers only and cannot be masked."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for group in self.param_groups:
                if not isinstance(group["lr"], float):
                    raise TypeError("lr must be a float")
                for weight in group["params"]:
                    if weight.grad.isnan().any():
                        raise ArithmeticError("stepped on a bad gradient")
                    weight -= group["lr"] * weight.grad


def test_an_optimizer_that_cannot_be_masked_steps_on_numbers_or_not_at_all() -> None:
    weights = parameters()
    optimizer = Strict([{"params": [weights[0]], "lr": 0.5}, {"params": [weights[1]], "lr": 2.0}], 1.0)
    tensor_rates(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert not maskable(optimizer)
    gradients(weights, 0)
    expected = [weight.detach() - rate * weight.grad for weight, rate in zip(weights, (0.5, 2.0), strict=True)]
    masked_step(optimizer, GOOD)
    for weight, value in zip(weights, expected, strict=True):
        assert torch.equal(weight.detach(), value)
    for weight in weights:
        weight.grad = torch.full_like(weight, float("nan"))
    masked_step(optimizer, BAD)
    for weight, value in zip(weights, expected, strict=True):
        assert torch.equal(weight.detach(), value)
    with pytest.raises(ArithmeticError):
        masked_step(optimizer, GOOD)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        assert group["lr"] is rate  # the engine's own tensors are back, also after an error


def test_settings_without_a_meaning_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"optim\.nesterov=true needs optim\.momentum"):
        SGD(momentum=0.0, nesterov=True).build(groups(parameters()))
    with pytest.raises(UsageError, match=r"optim\.beta2=1"):
        AdamW(beta2=1.0).build(groups(parameters()))
