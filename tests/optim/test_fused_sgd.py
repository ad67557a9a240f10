"""SGD's short way to step against torch's own, to the last bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from engine.plugins.optim.optimizers import sgd

GOOD = torch.zeros(())
MIXED = (torch.float32, torch.float64, torch.float32)


def parameters(dtypes: tuple[torch.dtype, ...] = MIXED) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(4, 3, generator=generator).to(dtype)) for dtype in dtypes]


def groups(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The last parameter is in a group of its own, which does not decay."""
    return [
        {"params": weights[:-1], "names": ["a", "b"], "decays": True},
        {"params": weights[-1:], "names": ["c"], "decays": False},
    ]


def both(momentum: float, nesterov: bool) -> tuple[list[nn.Parameter], Any, list[nn.Parameter], SGD]:
    ours, theirs = parameters(), parameters()
    optimizer = sgd(groups(ours), 0.125, momentum, nesterov, 0.5, decay_all=False)
    decayed = [{"params": theirs[:-1], "weight_decay": 0.5}, {"params": theirs[-1:], "weight_decay": 0.0}]
    return ours, optimizer, theirs, SGD(decayed, lr=0.125, momentum=momentum, nesterov=nesterov, fused=True)


def gradients(step: int, *owners: list[nn.Parameter], missing: int | None = None) -> None:
    for weights in owners:
        generator = torch.Generator().manual_seed(step)
        for index, weight in enumerate(weights):
            drawn = torch.randn(weight.shape, generator=generator).to(weight.dtype)
            weight.grad = None if index == missing else drawn


def assert_same(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_types_and_groups_mixed_it_steps_as_torch_does(momentum: float, nesterov: bool) -> None:
    ours, optimizer, theirs, torchs = both(momentum, nesterov)
    for step in range(4):
        gradients(step, ours, theirs)
        for one, other in zip(optimizer.param_groups, torchs.param_groups, strict=True):
            one["lr"] = torch.tensor(0.5**step)
            other["lr"] = 0.5**step
        optimizer.step_unless(GOOD)
        torchs.step()
    assert_same(ours, theirs)


NHWC, NCHW, NEITHER, GAPS = (0, 2, 3, 1), (0, 1, 2, 3), (1, 0, 3, 2), ()


def laid_out(order: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return numbers of shape 4 x 3 x 3 x 2 whose axes come in this order in memory; GAPS: every other place."""
    drawn = torch.randn(4, 3, 3, 2, generator=torch.Generator().manual_seed(seed))
    if order == GAPS:
        return torch.stack([drawn, drawn], -1)[..., 0]
    back = [order.index(axis) for axis in range(4)]
    return drawn.permute(order).contiguous().permute(back)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("gradient", [NHWC, NCHW, NEITHER, GAPS])
@pytest.mark.parametrize("buffer", [NHWC, NCHW, NEITHER, GAPS])
@pytest.mark.parametrize("order", [NHWC, NCHW, NEITHER, GAPS])
def test_filters_and_their_momentum_move_whatever_their_order_in_memory(
    order: tuple[int, ...], buffer: tuple[int, ...], gradient: tuple[int, ...], momentum: float
) -> None:
    ours, theirs = nn.Parameter(laid_out(order)), nn.Parameter(laid_out(NCHW))
    optimizer = sgd([{"params": [ours], "names": ["a"], "decays": True}], 0.125, momentum, False, 0.5, decay_all=False)
    torchs = SGD([theirs], lr=0.125, momentum=momentum, weight_decay=0.5, foreach=False)
    if momentum:
        optimizer.state[ours]["momentum_buffer"] = laid_out(buffer, seed=1)
        torchs.state[theirs]["momentum_buffer"] = laid_out(NCHW, seed=1)
    before = ours.detach().clone()
    for step in range(3):
        ours.grad, theirs.grad = laid_out(gradient, seed=step + 2), laid_out(NCHW, seed=step + 2)
        optimizer.step_unless(GOOD)
        torchs.step()
    assert not torch.equal(ours, before)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    if momentum:
        kept, expected = (o.state[p]["momentum_buffer"] for o, p in ((optimizer, ours), (torchs, theirs)))
        torch.testing.assert_close(kept, expected, rtol=1e-6, atol=1e-6)
    assert ours.stride() == laid_out(order).stride()


def test_a_parameter_without_a_gradient_stays_and_the_others_move() -> None:
    ours, optimizer, theirs, torchs = both(0.9, False)
    for step, missing in enumerate((None, 1, None)):
        gradients(step, ours, theirs, missing=missing)
        before = [weight.detach().clone() for weight in ours]
        optimizer.step_unless(GOOD)
        torchs.step()
        moved = [not torch.equal(weight, kept) for weight, kept in zip(ours, before, strict=True)]
        assert moved == [index != missing for index in range(3)]
    assert_same(ours, theirs)


@pytest.mark.parametrize("how", ["state dict", "buffer by buffer"])
def test_momentum_loaded_between_two_steps_is_used(how: str) -> None:
    ours, optimizer, theirs, torchs = both(0.9, False)
    gradients(0, ours, theirs)
    optimizer.step_unless(GOOD)
    torchs.step()
    loaded: list[Tensor] = [torch.full_like(weight, 3.0) for weight in ours]
    for weight, value in zip(theirs, loaded, strict=True):
        torchs.state[weight]["momentum_buffer"] = value.detach().clone()
    if how == "state dict":
        optimizer.load_state_dict(copy.deepcopy(torchs.state_dict()))
    else:
        for weight, value in zip(ours, loaded, strict=True):
            optimizer.state[weight]["momentum_buffer"] = value.detach().clone()
    gradients(1, ours, theirs)
    optimizer.step_unless(GOOD)
    torchs.step()
    assert_same(ours, theirs)
    for one, other in zip(ours, theirs, strict=True):
        kept, expected = (o.state[w]["momentum_buffer"] for o, w in ((optimizer, one), (torchs, other)))
        assert torch.equal(kept, expected)


def test_groups_become_one_only_where_nothing_tells_them_apart() -> None:
    def names(weight_decay: float, decay_all: bool, **settings: float) -> list[list[str]]:
        first, second = groups(parameters())
        optimizer = sgd([first, {**second, **settings}], 0.125, 0.9, False, weight_decay, decay_all)
        return [group["names"] for group in optimizer.param_groups]

    assert names(0.5, decay_all=False) == [["a", "b"], ["c"]]
    assert names(0.5, decay_all=True) == [["a", "b", "c"]]
    assert names(0.0, decay_all=False) == [["a", "b", "c"]]
    assert names(0.5, decay_all=True, lr=0.25) == [["a", "b"], ["c"]]


def test_a_group_added_later_is_updated_too() -> None:
    ours, optimizer, _, _ = both(0.9, False)
    gradients(0, ours)
    optimizer.step_unless(GOOD)
    late = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late], "weight_decay": 0.0})
    for _ in range(2):
        late.grad = torch.ones(2)
        optimizer.step_unless(GOOD)
    # 1 - 0.125 x 1, then - 0.125 x (0.9 x 1 + 1)
    torch.testing.assert_close(late.detach(), torch.full((2,), 1 - 0.125 - 0.125 * 1.9))
