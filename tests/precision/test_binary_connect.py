"""BinaryConnect: signs and their gradients, clipping, scaled updates, draws, evaluation weights and telemetry."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from engine import UsageError
from engine.loader import Position
from engine.plugins.models import MLP
from engine.plugins.precision import BinaryConnect
from engine.randomness import Key
from engine.testing import check_precision


class Trained:
    """A policy with a small network and plain gradient descent, a step at a time."""

    def __init__(self, options: BinaryConnect, lr: float = 0.1, seed: int = 1, model: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.policy = options.build()
        plain = MLP(hidden=[30], batch_norm=True).build((1, 4, 4), 5) if model is None else model
        self.model = self.policy.convert(plain)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, fused=True)
        self.policy.prepare(self.model, self.optimizer, Key.of(seed))
        self.images, self.targets = torch.randn(20, 1, 4, 4), torch.arange(20) % 5

    def gradients(self, step: int = 0, watched: bool = False, images: torch.Tensor | None = None) -> None:
        self.optimizer.zero_grad()
        with self.policy.computing(Position(step, 20 * step), watched):
            self.computed = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            with self.policy.forward(20 * step + torch.arange(20)):
                loss = functional.cross_entropy(self.model(self.images if images is None else images), self.targets)
            loss.backward()

    def update(self, bad: float = 0.0) -> None:
        self.policy.unscale(self.optimizer)
        self.policy.update(self.optimizer, torch.tensor(bad))

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


@pytest.mark.parametrize("options", [BinaryConnect(), BinaryConnect(sign="stochastic"), BinaryConnect(scale_lr=False)])
def test_it_keeps_the_promises_of_policies(options):
    check_precision(options)


def test_passes_see_signs_and_the_optimiser_the_real_weights_with_the_signs_gradients():
    training = Trained(BinaryConnect())
    before = training.weights()
    training.gradients()
    after = training.weights()
    reference = MLP(hidden=[30], batch_norm=True).build((1, 4, 4), 5).double()
    signs = {n: torch.where(p >= 0, 1.0, -1.0) if p.ndim > 1 else p for n, p in before.items()}
    reference.load_state_dict({n: v.double() for n, v in signs.items()}, strict=False)
    functional.cross_entropy(reference(training.images.double()), training.targets).backward()
    for (name, parameter), own in zip(training.model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(before[name], after[name]), name
        assert torch.equal(training.computed[name], signs[name]), name
        assert torch.allclose(parameter.grad.double(), own.grad, atol=1e-6), name


@pytest.mark.parametrize("scaled", [True, False])
def test_updates_are_divided_by_glorots_coefficient_and_weights_clipped(scaled):
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    training = Trained(BinaryConnect(scale_lr=scaled), lr=0.3, model=net)
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = 0.999
    before = training.weights()
    training.gradients()
    training.update()
    coefficients = {"0.weight": (1.5 / (9 * 1 + 9 * 6)) ** 0.5, "4.weight": (1.5 / (24 + 5)) ** 0.5}
    for name, parameter in net.named_parameters():
        factor = 1 / coefficients[name] if scaled and name in coefficients else 1
        expected = before[name].double() - 0.3 * factor * parameter.grad.double()
        if name in coefficients:
            expected = expected.clamp(-1, 1)
        assert torch.allclose(parameter.double(), expected, atol=2e-6), name
    training.model[4].weight.grad.fill_(-100)
    training.update()
    assert bool((net[4].weight == 1).all())
    assert float(training.policy.telemetry()["precision/clipped_weights"]) >= 120 / 174


def test_weights_are_clipped_before_the_first_step_and_a_masked_step_changes_nothing():
    net = nn.Linear(4, 3)
    with torch.no_grad():
        net.weight[0] = torch.tensor([-3.0, -1.0, 0.5, 7.0])
        net.bias[0] = 5.0
    training = Trained(BinaryConnect(), model=nn.Sequential(nn.Flatten(), nn.Linear(16, 4), net, nn.Linear(3, 5)))
    assert net.weight[0].tolist() == [-1.0, -1.0, 0.5, 1.0]
    assert net.bias[0] == 5.0
    before = training.weights()
    training.gradients(watched=True)
    training.update(bad=1.0)
    assert all(torch.equal(before[name], value) for name, value in training.weights().items())
    assert float(training.policy.telemetry()["precision/weight_flips"]) == 0


def test_stochastic_signs_have_the_probability_of_the_hard_sigmoid():
    steps = 1500
    weights = torch.cat([torch.linspace(-1, 1, 101), torch.tensor([-0.0, 1e-4, -1e-4, 0.999, -0.999, 0.9999])])
    net = nn.Linear(len(weights), 1, bias=False)
    policy = BinaryConnect(sign="stochastic").build()
    policy.convert(net)
    with torch.no_grad():
        net.weight.copy_(weights)
    policy.prepare(net, torch.optim.SGD(net.parameters(), lr=1.0), Key.of(3))
    plus = torch.zeros(len(weights), dtype=torch.float64)
    for step in range(steps):
        with policy.computing(Position(step, step), False):
            assert bool((net.weight.abs() == 1).all())
            plus += net.weight[0].detach() > 0
    chance = (weights.double() + 1) / 2
    certain = (chance == 0) | (chance == 1)
    assert torch.equal(plus[certain] / steps, chance[certain])
    z = ((plus / steps - chance) / (chance * (1 - chance) / steps).sqrt())[~certain]
    assert float(z.abs().max()) < 4.5
    assert abs(float(z.mean())) < 4 / len(z) ** 0.5
    assert abs(float(z.std()) - 1) < 4 / (2 * len(z)) ** 0.5


def test_processes_draw_the_same_signs_whatever_they_read_and_other_steps_seeds_and_layouts_do_as_they_should():
    ranks = [Trained(BinaryConnect(sign="stochastic")) for _ in range(2)]
    ranks[0].gradients(step=7)
    ranks[1].gradients(step=7, images=ranks[1].images + 1)
    assert all(torch.equal(value, ranks[1].computed[name]) for name, value in ranks[0].computed.items())
    ranks[1].gradients(step=8)
    assert not torch.equal(ranks[0].computed["fc1.weight"], ranks[1].computed["fc1.weight"])
    other = Trained(BinaryConnect(sign="stochastic"), seed=2)
    other.gradients(step=7)
    assert not torch.equal(ranks[0].computed["fc1.weight"], other.computed["fc1.weight"])
    signs = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        net = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=layout)
        policy = BinaryConnect(sign="stochastic").build()
        policy.prepare(policy.convert(net), torch.optim.SGD(net.parameters(), lr=1.0), Key.of(0))
        with policy.computing(Position(3, 3), False):
            signs.append(net.weight.detach().clone())
    assert torch.equal(*signs)


def test_evaluations_take_signs_or_where_those_are_random_real_weights():
    for kind in ("deterministic", "stochastic"):
        training = Trained(BinaryConnect(sign=kind))
        own = training.weights()
        with training.policy.evaluation_weights(training.model):
            for name, parameter in training.model.named_parameters():
                signs = kind == "deterministic" and parameter.ndim > 1
                assert torch.equal(parameter, torch.where(own[name] >= 0, 1.0, -1.0) if signs else own[name]), name
        assert all(torch.equal(own[name], value) for name, value in training.weights().items())
        fresh = BinaryConnect(sign=kind).build()
        exported = fresh.export(copy.deepcopy(training.model)).eval()
        with fresh.evaluation_weights(exported), torch.no_grad():
            binary = bool((exported.fc1.weight.abs() == 1).all())
        assert binary == (kind == "deterministic")


def test_flips_are_counted_in_watched_steps():
    training = Trained(BinaryConnect(), lr=1.0)
    flips = seen = 0
    for step in range(6):
        before = training.weights()
        training.gradients(step, watched=step % 2 == 0)
        training.update()
        if step % 2 == 0:
            for name, value in training.weights().items():
                if value.ndim > 1:
                    flips += int(((before[name] >= 0) != (value >= 0)).sum())
                    seen += value.numel()
    assert flips > 0
    told = training.policy.telemetry()
    assert float(told["precision/weight_flips"]) == flips / seen
    weights = [value for value in training.weights().values() if value.ndim > 1]
    clipped = sum(int((value.abs() == 1).sum()) for value in weights)
    assert float(told["precision/clipped_weights"]) == clipped / sum(value.numel() for value in weights)
    assert float(training.policy.telemetry()["precision/weight_flips"]) == 0  # since the last time


def test_a_watched_step_sums_up_nothing_that_is_never_told():
    training = Trained(BinaryConnect(), lr=1.0)
    training.gradients(watched=True)
    training.update()
    policy = training.policy
    assert not policy.sites.power.any()
    assert not policy._vanished.any()
    assert policy.telemetry().keys() == {"precision/weight_flips", "precision/clipped_weights"}


def test_a_model_without_matrices_is_refused():
    with pytest.raises(UsageError, match="precision=binary_connect: the model has no matrix"):
        BinaryConnect().build().convert(nn.BatchNorm2d(3))
