"""Cutting a network behind what is frozen: where, and that both parts make the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from deep import Residual
from torch import Tensor, nn

from engine import UsageError
from engine.cutting import cut_behind_frozen
from engine.freezing import has_statistics
from engine.layers import stochastic_layers

IMAGES = torch.rand(5, 2, 8, 8)


def frozen(model: nn.Module, *trains: str) -> list[nn.Module]:
    """Let parameters of such names train; return the layers that stay still: those that have no part in it."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trains))
    moving = [n for n, layer in model.named_modules() if any(p.requires_grad for p in layer.parameters(recurse=False))]
    names = [name for name, _ in model.named_modules()]
    first = min((names.index(name) for name in moving), default=len(names))
    restless = [*stochastic_layers(model), *(layer for layer in model.modules() if has_statistics(layer))]
    return [layer for layer in restless if names.index(name_of(model, layer)) < first]


def name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, layer in model.named_modules() if layer is wanted)


def network() -> nn.Module:
    torch.manual_seed(3)
    return Residual(2, 3, False)


@pytest.mark.parametrize(
    ("trains", "last", "shape"),
    [
        (("head",), "middle", (12,)),  # the ReLU behind it is of the prefix, too
        (("middle", "head"), "late", (32,)),  # pooled and flattened; the dropout behind belongs to what trains
        (("inner", "late", "middle", "head"), "early_noise", (6, 8, 8)),
        (("late", "head"), "inner", (6, 4, 4)),  # behind the whole of the residual branch
    ],
)
def test_the_cut_is_at_the_last_place_where_one_tensor_leads_on(trains, last, shape):
    model = network()
    still = frozen(model, *trains)
    if last == "late":
        still.remove(model.noise)
    cut = cut_behind_frozen(model, still, "here", "do otherwise")
    assert cut.last == last
    with torch.no_grad():
        cut.prefix.eval()
        made = cut.prefix(IMAGES)
    assert made.shape[1:] == shape
    here = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in cut.rest.named_parameters():
        assert here[id(parameter)] == name, "the model's own, under its name"
    assert {n for n, p in model.named_parameters() if p.requires_grad} <= {n for n, _ in cut.rest.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
def test_both_parts_make_the_whole_in_either_mode(training):
    model = network()
    still = frozen(model, "middle", "head")
    still.remove(model.noise)
    cut = cut_behind_frozen(model, still, "here", "do otherwise")
    model.train(training)
    cut.rest.train(training)
    for layer in still:
        layer.eval()
    torch.manual_seed(1)
    whole = model(IMAGES)
    torch.manual_seed(1)
    parts = cut.rest(cut.prefix(IMAGES))
    assert torch.equal(whole, parts)
    whole.sum().backward()
    given = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    parts.sum().backward()
    assert all(torch.equal(parameter.grad, given[name]) for name, parameter in cut.rest.named_parameters())


class Two(nn.Module):
    """A branch of which only the second layer trains, around which the first one's input goes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        return self.head((x + self.two(self.one(x).relu())).mean((2, 3)))


def test_a_partly_frozen_residual_block_is_cut_before_it():
    model = Two()
    cut = cut_behind_frozen(model, frozen(model, "two", "head"), "here", "do otherwise")
    assert cut.last == "stem"
    assert sorted(dict(cut.rest.named_parameters())) == sorted(
        f"{layer}.{kind}" for layer in ("one", "two", "head") for kind in ("weight", "bias")
    )


def test_without_a_frozen_beginning_there_is_no_cut():
    model = network()
    assert cut_behind_frozen(model, frozen(model, "first", "head"), "here", "do otherwise") is None
    cut = cut_behind_frozen(model, frozen(model, "norm", "head"), "here", "do otherwise")
    assert cut.last == "first", "a normalisation that learns is not of the prefix"


def test_a_frozen_normalisation_that_is_not_still_is_left_to_the_rest():
    model = network()
    frozen(model, "head")
    assert cut_behind_frozen(model, [], "here", "do otherwise").last == "first"


def untraceable(change: Callable[[Tensor], Tensor]) -> nn.Module:
    class Odd(Two):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(change(images))

    return Odd()


def test_what_torch_fx_cannot_trace_is_told_in_one_line():
    model = untraceable(lambda images: images if images.sum() > 0 else -images)
    frozen(model, "head")
    with pytest.raises(UsageError, match=r"^here: Odd's forward pass depends on its numbers.*: do otherwise$"):
        cut_behind_frozen(model, [], "here", "do otherwise")
