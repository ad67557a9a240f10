"""The weights' moving average against the recursion written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from engine.ema import WeightAverage

APPLIED, MASKED, ONE = torch.tensor(True), torch.tensor(False), torch.tensor([1])


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4)).to(dtype)


def train_a_little(model: nn.Module, seed: int) -> None:
    """Move every weight, and by a forward pass BatchNorm's buffers."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter.dtype))
    model(torch.randn(4, 2, 3, 3, generator=draw).to(next(model.parameters()).dtype))


def floats(model: nn.Module) -> dict[str, np.ndarray]:
    return {n: v.detach().double().numpy().copy() for n, v in model.state_dict().items() if v.is_floating_point()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_average_follows_the_recursion_masked_updates_left_out(dtype, tolerance, decay):
    model = network(dtype)
    average, expected = WeightAverage(model, decay), floats(model)
    updates = 0
    for step in range(12):
        train_a_little(model, step)
        masked = step in (0, 4, 5)
        updates += not masked
        average.update(MASKED if masked else APPLIED, torch.tensor([updates]))
        if not masked:
            now, kept = floats(model), min(decay, (1 + updates) / (10 + updates))
            expected = {name: kept * old + (1 - kept) * now[name] for name, old in expected.items()}
    state = average.state()
    assert state.keys() == expected.keys()
    assert "1.running_var" in state
    assert "1.num_batches_tracked" not in state, "a count has no average"
    for name, value in state.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value.double().numpy(), expected[name], rtol=tolerance, atol=tolerance)


def test_a_masked_update_keeps_every_bit():
    model = network()
    average = WeightAverage(model, 0.7)
    train_a_little(model, 0)
    average.update(APPLIED, ONE)
    before = {name: value.clone() for name, value in average.state().items()}
    train_a_little(model, 1)
    average.update(MASKED, ONE)
    assert all(torch.equal(value, before[name]) for name, value in average.state().items())


def test_swapped_evaluates_with_the_average_and_gives_everything_back():
    model = network()
    average = WeightAverage(model, 0.9)
    train_a_little(model, 0)
    average.update(APPLIED, ONE)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    places = [parameter.data_ptr() for parameter in model.parameters()]
    with average.swapped():
        held = model.state_dict()
        assert all(torch.equal(held[name], value) for name, value in average.state().items())
        assert not torch.equal(held["0.weight"], own["0.weight"])
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert places == [parameter.data_ptr() for parameter in model.parameters()]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_swapped_gives_the_weights_back_after_an_exception():
    model = network()
    average = WeightAverage(model, 0.9)
    train_a_little(model, 0)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), average.swapped():
        raise KeyboardInterrupt
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_state_that_is_loaded_is_the_state_that_was_given():
    model, other = network(), network()
    average = WeightAverage(model, 0.9)
    train_a_little(model, 0)
    average.update(APPLIED, ONE)
    given = {name: value.clone() for name, value in average.state().items()}
    taker = WeightAverage(other, 0.9)
    taker.load({**given, "something else": torch.ones(1)})
    assert all(torch.equal(value, given[name]) for name, value in taker.state().items())
    assert not torch.equal(other.state_dict()["0.weight"], given["0.weight"]), "loading must not touch the model"
    train_a_little(model, 1)
    average.update(APPLIED, ONE)
    assert all(torch.equal(value, given[name]) for name, value in taker.state().items()), "it keeps a copy"


def test_averages_of_bfloat16_weights_do_not_lose_small_steps():
    """Weights that moved from 1 to 2, averaged at 0.999 for long: bfloat16's steps are 4 or 8 times too coarse."""
    model = nn.Linear(2, 2).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    average = WeightAverage(model, 0.999)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    updates = 3000
    for _ in range(updates):
        average.update(torch.tensor(True), torch.tensor([10**6]))
    expected = 2 - 0.999**updates
    for value in average.state().values():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), torch.full_like(value, expected).double(), rtol=1e-4, atol=0)
    own = [p.clone() for p in model.parameters()]
    with average.swapped():
        assert all(p.dtype == torch.bfloat16 for p in model.parameters())
        assert all(torch.equal(p, torch.full_like(p, expected)) for p in model.parameters())
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), own, strict=True))
