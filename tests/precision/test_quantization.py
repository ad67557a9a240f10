"""The base of policies that round: what draws depend on, evaluations inside training, and what is counted."""

from __future__ import annotations

from contextlib import suppress

import numpy
import pytest
import torch
from rounding_policies import (
    NEAREST,
    STOCHASTIC,
    VALUES,
    Convolutions,
    Table,
    assert_equal,
    exact_images,
    joined,
    step_of,
    watch,
)
from torch import Tensor, nn

from engine.loader import Position
from engine.quantization import FixedPoint, Role


def trained(table, images: Tensor, shares: list[slice], *, steps: int = 2, layout=torch.contiguous_format):
    """Train on shares of a batch, one after the other; return all values seen by name, and the weights."""
    torch.manual_seed(0)
    policy, model = Table(table), Convolutions().to(memory_format=layout)
    train = step_of(policy, model)
    seen = watch(model)
    for step in range(steps):
        train(step, images.to(memory_format=layout), shares)
    return joined(seen), {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("table", [STOCHASTIC, NEAREST], ids=["stochastic", "nearest"])
def test_micro_batches_round_as_the_whole_batch_does(table):
    images = exact_images(8)
    whole = trained(table, images, [slice(0, 8)], steps=1)
    shares = trained(table, images, [slice(0, 3), slice(3, 3), slice(3, 8)], steps=1)
    assert_equal(*(seen for seen, _ in (whole, shares)))
    assert_equal(*(weights for _, weights in (whole, shares)))


def test_two_processes_round_as_one():
    """Each has the weights, half of the samples and their numbers; the gradients are summed between."""
    images = exact_images(8)
    whole, weights = trained(STOCHASTIC, images, [slice(0, 8)], steps=1)
    ranks = []
    for share in (slice(0, 4), slice(4, 8)):
        torch.manual_seed(0)
        model = Convolutions()
        train = step_of(policy := Table(STOCHASTIC), model)
        seen = watch(model)
        train(0, images, [share], update=False)
        ranks.append((policy, train, model, joined(seen)))
    parts = {name: torch.cat([seen[name] for *_, seen in ranks]) for name in whole}
    assert_equal(whole, parts)
    gradients = [[p.grad for p in model.parameters()] for _, _, model, _ in ranks]
    total = [a + b for a, b in zip(*gradients, strict=True)]
    for _, train, model, _ in ranks:
        for parameter, gradient in zip(model.parameters(), total, strict=True):
            parameter.grad = gradient.clone()
        train.update()
        assert_equal(weights, dict(model.named_parameters()))


def test_rounding_depends_on_neither_memory_layout_nor_threads():
    images, threads = exact_images(8), torch.get_num_threads()
    one = trained(STOCHASTIC, images, [slice(0, 8)])
    try:
        torch.set_num_threads(2)
        other = trained(STOCHASTIC, images, [slice(0, 8)], layout=torch.channels_last)
    finally:
        torch.set_num_threads(threads)
    for these, those in zip(one, other, strict=True):
        assert_equal(these, those)


def test_draws_change_from_step_to_step_and_with_the_seed():
    images = exact_images(8)

    def first_output(step: int, seed: int) -> Tensor:
        torch.manual_seed(0)
        model = Convolutions()
        train = step_of(Table(STOCHASTIC), model, seed)
        seen = watch(model)
        train(step, images, [slice(0, 8)])
        return seen["first.output"][0]

    same, again, later, other = (first_output(*which) for which in ((1, 1), (1, 1), (2, 1), (1, 2)))
    assert torch.equal(same, again)
    assert not torch.equal(same, later)
    assert not torch.equal(same, other)


def test_a_layer_that_is_called_twice_draws_anew():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.layer(x), self.layer(x)])

    torch.manual_seed(0)
    model, images = Twice(), torch.randn(16, 8)
    policy = Table(STOCHASTIC)
    policy.convert(model)

    def outputs() -> Tensor:
        with policy.computing(Position(3, 0), False), policy.forward(torch.arange(16)):
            return model(images).detach()

    one, other = outputs(), outputs()
    assert torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert (one[0] - one[1]).abs().max() <= 2 * 2.0**-6


def test_evaluations_draw_and_count_nothing_also_inside_training():
    torch.manual_seed(0)
    model = Convolutions()
    train = step_of(policy := Table({**STOCHASTIC, Role.WEIGHT: FixedPoint(2, 3, "stochastic")}), model)
    images = exact_images(8)
    train(0, images, [slice(0, 8)])
    counts, weights = policy.sites.counts.clone(), [p.detach().clone() for p in model.parameters()]
    with policy.evaluation_weights(model), torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                assert torch.equal(p * 8, (p * 8).round()), name
        outputs = []
        for _ in range(2):
            with policy.forward():
                outputs.append(model(images))
    assert torch.equal(*outputs)
    assert torch.equal(counts, policy.sites.counts)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


class Stop(Exception):
    pass


def test_an_exception_within_a_step_leaves_parameters_and_evaluations_as_they_were():
    model = nn.Sequential(nn.Linear(4, 4))
    policy = Table({Role.WEIGHT: FixedPoint(1, 1, "stochastic"), Role.ACTIVATION: VALUES})
    policy.convert(model)
    before = model[0].weight.detach().clone()
    with suppress(Stop), policy.computing(Position(), False), policy.forward(torch.arange(1)):
        assert not torch.equal(model[0].weight, before)
        raise Stop
    assert torch.equal(model[0].weight, before)
    counts = policy.sites.counts.clone()
    model(torch.randn(2, 4))
    assert torch.equal(policy.sites.counts, counts)


def test_telemetry_tells_shares_noise_and_vanished_updates():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 40, bias=False))
    table = {Role.ACTIVATION: FixedPoint(2, 3), Role.STORED_WEIGHT: FixedPoint(1, 4)}
    train = step_of(policy := Table(table), model, rate=0.5)
    images, before = torch.randn(200, 50), model[0].weight.detach().double().numpy().copy()
    train(0, images, [slice(0, 200)], watched=True)
    tells = {tag: float(value) for tag, value in policy.telemetry().items()}

    def grid(x: numpy.ndarray, il: int, fl: int) -> numpy.ndarray:
        return numpy.clip(numpy.rint(x * 2**fl) / 2**fl, -(2.0 ** (il - 1)), 2.0 ** (il - 1) - 2.0**-fl)

    given = images.double().numpy()
    read = grid(given, 2, 3)
    sums = read @ before.T
    returned = grid(sums, 2, 3)
    both, rounded = (
        numpy.concatenate([given.ravel(), sums.ravel()]),
        numpy.concatenate([read.ravel(), returned.ravel()]),
    )
    beyond = (both > 2 - 2**-4) | (both < -2 - 2**-4)
    assert tells["precision/saturated/activation"] == pytest.approx(beyond.mean(), abs=1e-4)
    assert tells["precision/zeroed/activation"] == pytest.approx(((both != 0) & (rounded == 0)).mean(), abs=1e-4)
    ratio = 10 * numpy.log10((both**2).sum() / ((rounded - both) ** 2).sum())
    assert tells["precision/sqnr_db/activation"] == pytest.approx(ratio, abs=0.01)
    moved = (model[0].weight.detach().double().numpy() != before).mean()
    assert 0 < moved < 1
    assert tells["precision/vanished_updates"] == pytest.approx(1 - moved, abs=1e-3)
    nothing = policy.telemetry()
    assert float(nothing["precision/saturated/activation"]) == 0
    assert float(nothing["precision/vanished_updates"]) == 0
    assert float(nothing["precision/sqnr_db/activation"]) == 200
