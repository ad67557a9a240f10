"""The losses and metrics against torch.nn.functional, float64 formulas and hand-made cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine import UsageError
from engine.options import Loss
from engine.plugins.losses import MSE, CrossEntropy, SquaredHinge

CLASSES = 7


def scores(n: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(4), dtype=dtype) * 2


def numbers(n: int = 12) -> Tensor:
    return torch.randint(0, CLASSES, (n,), generator=torch.Generator().manual_seed(5))


def soft(n: int = 12) -> Tensor:
    return torch.rand(n, CLASSES, generator=torch.Generator().manual_seed(6), dtype=torch.float64).softmax(1)


def one_hot(targets: Tensor) -> Tensor:
    return functional.one_hot(targets, CLASSES).double()


def by_hand_cross_entropy(outputs: Tensor, labels: Tensor, smoothing: float) -> float:
    total = 0.0
    for row, label in zip(outputs.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        for value, share in zip(row, label, strict=True):
            total -= ((1 - smoothing) * share + smoothing / CLASSES) * (value - log_sum)
    return total


def by_hand_squared_hinge(outputs: Tensor, targets: Tensor) -> float:
    total = 0.0
    for row, target in zip(outputs.tolist(), targets.tolist(), strict=True):
        for k, value in enumerate(row):
            total += max(0.0, 1 - (1 if k == target else -1) * value) ** 2
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("targets", [numbers(), soft()], ids=["numbers", "soft"])
def test_cross_entropy_is_torchs_and_the_formulas(smoothing: float, targets: Tensor) -> None:
    loss = CrossEntropy(label_smoothing=smoothing).build()(scores(), targets)
    per_sample = functional.cross_entropy(scores(), targets, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(loss, per_sample.sum())
    labels = targets if targets.is_floating_point() else one_hot(targets)
    assert loss.item() == pytest.approx(by_hand_cross_entropy(scores(), labels, smoothing), rel=1e-12)


def test_squared_hinge_is_the_formula_and_torchs_hinge_squared() -> None:
    loss = SquaredHinge().build()(scores(), numbers())
    assert loss.item() == pytest.approx(by_hand_squared_hinge(scores(), numbers()), rel=1e-12)
    signs = 2 * one_hot(numbers()) - 1
    per_output = functional.hinge_embedding_loss(signs * scores(), -torch.ones_like(signs), reduction="none") ** 2
    torch.testing.assert_close(loss, per_output.sum())


def test_squared_hinge_of_soft_labels_is_the_expectation_over_their_classes() -> None:
    loss = SquaredHinge().build()
    torch.testing.assert_close(loss(scores(), one_hot(numbers())), loss(scores(), numbers()))
    expected = 0.0
    for row, label in zip(scores(), soft(), strict=True):
        for k, share in enumerate(label.tolist()):
            expected += share * by_hand_squared_hinge(row[None], torch.tensor([k]))
    assert loss(scores(), soft()).item() == pytest.approx(expected, rel=1e-12)


def test_mse_is_the_mean_over_outputs_summed_over_samples() -> None:
    difference = (scores() - one_hot(numbers())).square()
    torch.testing.assert_close(MSE().build()(scores(), numbers()), difference.mean(1).sum())
    regression = MSE(targets="values").build()
    torch.testing.assert_close(regression(scores(), soft()), (scores() - soft()).square().mean(1).sum())


@pytest.mark.parametrize("options", [CrossEntropy(label_smoothing=0.2), SquaredHinge(), MSE()])
@pytest.mark.parametrize("targets", [numbers(5), soft(5)], ids=["numbers", "soft"])
def test_gradients_are_those_of_finite_differences(options: Loss, targets: Tensor) -> None:
    outputs = scores(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda o: options.build()(o, targets), (outputs,))


@pytest.mark.parametrize("options", [CrossEntropy(), SquaredHinge(), MSE()])
def test_the_sum_over_parts_is_the_loss_of_the_whole(options: Loss) -> None:
    loss, outputs, targets = options.build(), scores(), numbers()
    parts = loss(outputs[:5], targets[:5]) + loss(outputs[5:], targets[5:])
    torch.testing.assert_close(loss(outputs, targets), parts)
    assert loss(outputs, targets).shape == ()


@pytest.mark.parametrize("options", [CrossEntropy(auxiliary=0.4), SquaredHinge(auxiliary=0.4), MSE(auxiliary=0.4)])
def test_further_heads_count_with_their_weight_and_the_first_is_measured(options: Loss) -> None:
    loss, targets = options.build(), numbers()
    heads = [scores(), -scores(), scores().flip(1)]
    expected = loss(heads[0], targets) + 0.4 * (loss(heads[1], targets) + loss(heads[2], targets))
    torch.testing.assert_close(loss(tuple(heads), targets), expected)
    assert loss.measure(heads, targets)[0] == loss.measure(heads[0], targets)[0]
    torch.testing.assert_close(loss([heads[0]], targets), loss(heads[0], targets))


@pytest.mark.parametrize("options", [CrossEntropy(), SquaredHinge(), MSE()])
def test_accuracy_counts_the_samples_whose_class_scores_highest(options: Loss) -> None:
    loss = options.build()
    outputs = torch.tensor([[3.0, 1, 2], [0, 0.5, -1], [-3, -2, -1], [1, 9, 2]], requires_grad=True)
    assert dict(loss.metrics) == {"accuracy": True}
    [right] = loss.measure(outputs, torch.tensor([0, 1, 0, 1]))
    assert (right.item(), right.shape, right.requires_grad) == (3, (), False)
    labels = torch.tensor([[0.6, 0.4, 0], [0.6, 0.4, 0], [0, 0.1, 0.9], [0.2, 0.7, 0.1]])
    assert loss.measure(outputs, labels)[0].item() == 3


def test_top5_counts_classes_among_the_five_highest() -> None:
    loss = CrossEntropy(top5=True).build()
    assert list(loss.metrics.items()) == [("accuracy", True), ("top5", True)]
    outputs = torch.arange(8.0).repeat(8, 1)  # class 7 scores highest, classes 3 to 7 are the five highest
    accuracy, top5 = loss.measure(outputs, torch.arange(8))
    assert (accuracy.item(), top5.item()) == (1, 5)
    assert loss.measure(outputs, functional.one_hot(torch.arange(8)).float())[1].item() == 5


def test_regression_measures_the_mean_absolute_error() -> None:
    loss = MSE(targets="values").build()
    assert dict(loss.metrics) == {"mean_absolute_error": False}
    outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    [error] = loss.measure(outputs, torch.tensor([[2.0, 2.0], [-3.0, 1.0]]))
    assert (error.item(), error.requires_grad) == (0.5 + 2.0, False)


@pytest.mark.parametrize("options", [CrossEntropy, SquaredHinge, MSE])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction_is_told_to_the_loop_and_leaves_the_sum_alone(options: type[Loss], reduction: str) -> None:
    loss = options(reduction=reduction).build()  # type: ignore[call-arg]
    assert loss.reduction == reduction
    torch.testing.assert_close(loss(scores(), numbers()), options().build()(scores(), numbers()))
    assert loss.outputs(CLASSES) == CLASSES


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"loss\.top5=true.*5"):
        CrossEntropy(top5=True).build().outputs(5)
    with pytest.raises(UsageError, match=r"loss\.targets=values.*class numbers"):
        MSE(targets="values").build()(scores(), numbers())
    with pytest.raises(UsageError, match=r"loss=mse.*\[7\].*\[1\]"):
        MSE(targets="values").build()(scores(), torch.rand(12, 1))
