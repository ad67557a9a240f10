"""Multinomial logistic regression with an L2 penalty, in float64, to its optimum: the same every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

TOLERANCE = 1e-8  # of the gradient's largest element, by the number of samples times c
STEPS, PRODUCTS = 100, 250  # at most: of Newton's method, and within each of them of conjugate gradients
DECREASE = 1e-4  # of the loss, by what the gradient foretells: Armijo's rule


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of features that are standardised first.

    mean, scale: float64 [d]. weight: float64 [d, classes]; bias: [classes]. gradient: the largest element of the
    gradient where the optimiser ended.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    gradient: float

    def scores(self, features: Tensor) -> Tensor:
        """Return the logits of features [n, d]."""
        return (features.double() - self.mean) / self.scale @ self.weight + self.bias

    def accuracy(self, features: Tensor, targets: Tensor) -> float:
        """Return the share of features [n, d] that get the right class."""
        return float((self.scores(features).argmax(1) == targets).double().mean())


def fit(features: Tensor, targets: Tensor, classes: int, c: float) -> Classifier:
    """Return the classifier with the smallest c x (summed cross-entropy) + |weight|^2 / 2; biases are not penalised.

    features: [n, d], standardised by their own mean and deviation; a constant one counts for nothing. targets: int64
    [n]. The loss is strictly convex in the weights, so there is one optimum; it is found by Newton's method, whose
    steps are solved by conjugate gradients (Nocedal and Wright 2006, algorithm 7.1).
    """
    wide = features.double()
    mean, scale = wide.mean(0), wide.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    standard = (wide - mean) / scale
    # The optimum's columns are sums of samples, so that more features than samples need not be searched: with X^T = QR,
    # weights Q w of X are weights w of R^T, with the same penalty.
    basis = None
    if standard.shape[1] > len(standard):
        basis, upper = torch.linalg.qr(standard.T)
        standard = upper.T.contiguous()
    problem = Problem(standard, one_hot(targets, classes).double(), c)
    found, gradient = minimise(problem, torch.zeros(standard.shape[1] + 1, classes, dtype=torch.float64))
    weight = found[:-1] if basis is None else basis @ found[:-1]
    return Classifier(mean, scale, weight, found[-1], gradient)


class Problem:
    """The loss of weights [d + 1, classes], whose last row is the biases', for samples [n, d]."""

    def __init__(self, samples: Tensor, wanted: Tensor, c: float) -> None:
        self._samples, self._wanted, self._c = samples, wanted, c
        self.tolerance = TOLERANCE * c * len(samples)

    def loss(self, weights: Tensor) -> Tensor:
        """Return the loss."""
        logits = self._logits(weights)
        entropy = (logits.logsumexp(1) - (logits * self._wanted).sum(1)).sum()
        return self._c * entropy + weights[:-1].square().sum() / 2

    def slope(self, weights: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
        """Return the gradient, what multiplies a direction by the Hessian, and about the Hessian's diagonal."""
        chances = self._logits(weights).softmax(1)

        def product(direction: Tensor) -> Tensor:
            change = chances * self._logits(direction)
            change -= chances * change.sum(1, keepdim=True)
            return self._gathered(change, direction)

        spread = self._c * chances * (1 - chances)
        diagonal = torch.cat([self._samples.square().T @ spread + 1, spread.sum(0, keepdim=True) + 1e-12])
        return self._gathered(chances - self._wanted, weights), product, diagonal

    def _logits(self, weights: Tensor) -> Tensor:
        return self._samples @ weights[:-1] + weights[-1]

    def _gathered(self, change: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient that a change [n, classes] of the logits' losses means, the penalty's with it."""
        change = self._c * change
        return torch.cat([self._samples.T @ change + weights[:-1], change.sum(0, keepdim=True)])


def minimise(problem: Problem, weights: Tensor) -> tuple[Tensor, float]:
    """Return the weights of the smallest loss, and the largest element of their gradient."""
    loss = problem.loss(weights)
    for _ in range(STEPS):
        gradient, product, diagonal = problem.slope(weights)
        if gradient.abs().max() <= problem.tolerance:
            break
        direction = _solved(product, -gradient, diagonal)
        expected, size = (gradient * direction).sum(), 1.0
        rounding = 1e-12 * abs(loss)  # of the losses, which near the optimum differ by no more
        while (new := problem.loss(weights + size * direction)) > loss + DECREASE * size * expected + rounding:
            size /= 2
        weights, loss = weights + size * direction, new
    return weights, float(problem.slope(weights)[0].abs().max())


def _solved(product: Callable[[Tensor], Tensor], wanted: Tensor, diagonal: Tensor) -> Tensor:
    """Return about the solution of a system, the nearer the smaller what is wanted is."""
    solution, residual = torch.zeros_like(wanted), wanted
    enough = float(wanted.norm()) * min(0.1, float(wanted.norm()) ** 0.5)
    step = turned = residual / diagonal
    size = (residual * turned).sum()
    for _ in range(PRODUCTS):
        image = product(step)
        length = size / (step * image).sum()
        solution, residual = solution + length * step, residual - length * image
        if residual.norm() <= enough:
            break
        turned = residual / diagonal
        size, before = (residual * turned).sum(), size
        step = turned + size / before * step
    return solution
