"""The linear classifiers of a probe: at their optimum, which torch's gradients and scikit-learn confirm."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from engine.plugins.features.logistic import fit
from engine.plugins.features.probe import chosen


def samples(count: int, features: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count + features)
    targets = torch.randint(0, classes, (count,), generator=generator)
    centres = torch.randn(classes, features, generator=generator)
    noise = torch.randn(count, features, generator=generator)
    return 3 + 2 * (0.5 * centres[targets] + noise), targets


@pytest.mark.parametrize(("count", "features"), [(300, 7), (60, 200)])  # fewer, and more features than samples
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_the_gradient_vanishes_where_it_ends(count, features, c):
    given, targets = samples(count, features)
    classifier = fit(given, targets, 4, c)
    weight, bias = classifier.weight.clone().requires_grad_(), classifier.bias.clone().requires_grad_()
    wide = given.double()
    standard = (wide - wide.mean(0)) / wide.std(0, correction=0)
    (c * cross_entropy(standard @ weight + bias, targets, reduction="sum") + weight.square().sum() / 2).backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-7 * c * count
    assert torch.allclose(classifier.scores(given), standard @ weight + bias)


def test_it_is_scikit_learns():
    given, targets = samples(300, 12)
    standard = (given.double() - given.double().mean(0)) / given.double().std(0, correction=0)
    theirs = LogisticRegression(C=0.05, tol=1e-10, max_iter=2000).fit(standard.numpy(), targets.numpy())
    ours = fit(given, targets, 4, 0.05)
    assert torch.allclose(ours.weight.T, torch.from_numpy(theirs.coef_), atol=1e-5)
    assert ours.accuracy(given, targets) == theirs.score(standard.numpy(), targets.numpy())


def test_features_that_are_constant_or_split_the_classes_do_no_harm():
    given, targets = samples(100, 3)
    constant = torch.cat([given, torch.full((100, 1), 5.0)], 1)
    assert torch.allclose(fit(constant, targets, 4, 1.0).weight[:3], fit(given, targets, 4, 1.0).weight)
    telling = torch.nn.functional.one_hot(targets, 4).double()
    assert fit(telling, targets, 4, 1e4).accuracy(telling, targets) == 1.0


def test_it_is_the_same_every_time():
    given, targets = samples(200, 30)
    assert torch.equal(fit(given, targets, 4, 0.1).weight, fit(given, targets, 4, 0.1).weight)


def test_of_several_strengths_the_one_that_generalises_is_chosen():
    given, targets = samples(100, 300)
    noise = targets[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert chosen(given, targets, 4, [0.5]) == 0.5

    def held_out_score(c: float) -> float:  # by another optimiser, on the same fifth
        held = torch.zeros(100, dtype=torch.bool)
        for number in range(4):
            held[(noise == number).nonzero()[4::5, 0]] = True
        rest = given[~held].double()
        mean, scale = rest.mean(0), rest.std(0, correction=0)
        model = LogisticRegression(C=c, tol=1e-10, max_iter=5000)
        model.fit(((rest - mean) / scale).numpy(), noise[~held].numpy())
        return float(model.score(((given[held].double() - mean) / scale).numpy(), noise[held].numpy()))

    strengths = [1e-4, 0.01, 1.0]
    assert chosen(given, noise, 4, strengths) == max(strengths, key=lambda c: (held_out_score(c), -c))
