"""check_transfer notices each way in which a transfer plan can break its promises, and says which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from engine import Transfer, interfaces
from engine.interfaces import Factors, Stage
from engine.testing import BrokenPromise, check_transfer


class Plan(interfaces.Transfer):
    """Trains the head, then all; its head is new."""

    def start(self, model, anatomy):
        self.new = anatomy.head
        return ["started"]

    def stages(self, steps):
        return [Stage("head", steps // 2), Stage("all", steps - steps // 2)]

    def factors(self, model, anatomy, stage):
        rate = 0.1 if stage.name == "all" else 0.0
        others = [name for name, _ in model.named_parameters() if name not in anatomy.head]
        return {name: Factors(rate) for name in others} | {n: Factors(2.0) for n in self.new or ()}


def options_of(plan: Callable[[], interfaces.Transfer]) -> Transfer:
    @dataclass
    class Chosen(Transfer):
        """A plan."""

        def build(self) -> interfaces.Transfer:
            return plan()

    return Chosen()


def test_a_plan_that_keeps_its_promises():
    check_transfer(options_of(Plan))


class Short(Plan):
    def stages(self, steps):
        return [Stage("head", steps // 2), Stage("all", steps // 2)]


class Misnamed(Plan):
    def factors(self, model, anatomy, stage):
        return {"head.weight": Factors(1.0)}


class Negative(Plan):
    def factors(self, model, anatomy, stage):
        return dict.fromkeys(anatomy.head, Factors(-1.0))


class Still(Plan):
    def factors(self, model, anatomy, stage):
        return {name: Factors(0.0) for name, _ in model.named_parameters()}


class Editing(Plan):
    def factors(self, model, anatomy, stage):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in anatomy.head)
        return super().factors(model, anatomy, stage)


class Drawing(Plan):
    def start(self, model, anatomy):
        torch.nn.init.normal_(model.get_parameter("0.weight"))
        return []


class Replacing(Plan):
    def start(self, model, anatomy):
        model.get_submodule("0").weight = torch.nn.Parameter(torch.zeros(4, 1, 3, 3))
        return []


class OneLine(Plan):
    def start(self, model, anatomy):
        return "started"


class Forgetful(Plan):
    def load(self, state):
        pass


class Unsaid(Plan):
    def state(self):
        return {"new": self.new}


class Thawing(Plan):
    """Moves what is frozen when a stage is asked for what computes it."""

    def shortcut(self, run, stage):

        def shrink(layer, inputs, output):
            layer.weight.data.mul_(0.99)

        run.model.get_submodule("0").register_forward_hook(shrink)


@pytest.mark.parametrize(
    ("plan", "promise", "seen"),
    [
        (Short, "their steps add up to the run's", "2 stages of a run of 997 have 996"),
        (Misnamed, "names the model's parameters", "there is no head.weight"),
        (Negative, "finite numbers of 0 and more", "has -1.0 and 1.0"),
        (Still, "something trains", "in stage head every rate is 0"),
        (Editing, "changes nothing in the model", "requires_grad differ after stage head's"),
        (Drawing, "the same weights to the same model", "0.weight differ in another process"),
        (Replacing, "in its own memory", "are other tensors than before"),
        (OneLine, "returns lines", "it returned 'started'"),
        (Forgetful, "gives the same factors", "they differ in stage head"),
        (Unsaid, "took up state.., as JSON", "not JSON serializable"),
        (Thawing, "is the same, bit for bit, at its end", "0.weight moved in stage head"),
    ],
)
def test_a_broken_promise_is_named(plan: Any, promise: str, seen: str):
    with pytest.raises(BrokenPromise, match=f"Chosen breaks a promise: .*{promise}.*; .*{seen}"):
        check_transfer(options_of(plan))
