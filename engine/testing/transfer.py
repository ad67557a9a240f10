"""Checks a transfer plan: its stages, its factors, its first weights, and a real run through all of it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from engine.anatomy import Anatomy
from engine.freezing import Factors
from engine.hookspecs import hookimpl
from engine.interfaces import Stage
from engine.interfaces import Transfer as Plan
from engine.options import Model, Observer, SaveOptions, Transfer
from engine.testing.promises import Promises
from engine.testing.small import small_run

LENGTHS = (12, 100, 997)
STEPS = 12
SHAPE, OUTPUTS = (1, 6, 6), 3

SPLIT = "stages() gives at least one stage, and their steps add up to the run's"
NAMED = "factors() names the model's parameters, with finite numbers of 0 and more"
TRAINS = "in every stage something trains"
UNEDITED = "factors() changes nothing in the model"
ALIKE = "start() gives the same weights to the same model, in its own memory, and returns lines"
KNOWN = "a plan that took up state(), as JSON, gives the same factors"
FROZEN = "what has no rate in a stage is the same, bit for bit, at its end"
RESUMED = "a run that goes on from a checkpoint is the one that was not disturbed, bit for bit"


@dataclass
class Network(Model):
    """Three layers with BatchNorm and dropout."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        first = [nn.Conv2d(inputs[0], 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1)]
        second = [nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)]
        return nn.Sequential(*first, *second, nn.Linear(24, outputs))


def check_transfer(transfer: Transfer, model: Model | None = None) -> None:
    """Check the options of a transfer plan with a small network of three layers, or ``model``'s for 1x6x6 images.

    Promises: stages that add up; factors for parameters that exist, which leave the model alone and come out the same
    from a plan that took up another's state; first weights that are the same in every process; and a run through all
    stages in which what is frozen keeps every bit, and that a resume makes the same. Options are built anew for each.
    Raises BrokenPromise.
    """
    promises, model = Promises(transfer), model or Network()
    anatomy = Anatomy(lambda outputs: model.build(SHAPE, outputs), OUTPUTS, SHAPE)
    for steps in LENGTHS:
        _check_stages(promises, transfer.build(), steps)
    plan, network = _check_start(promises, transfer, model, anatomy)
    again = transfer.build()
    with promises.works(KNOWN):
        again.load(json.loads(json.dumps(plan.state())))
    for stage in plan.stages(STEPS):
        factors = _check_factors(promises, plan, network, anatomy, stage)
        same = factors == dict(again.factors(network, anatomy, stage))
        promises.expect(same, KNOWN, f"they differ in stage {stage.name}")
    _check_run(promises, transfer, model)


def _check_stages(promises: Promises, plan: Plan, steps: int) -> None:
    with promises.works(SPLIT):
        stages = list(plan.stages(steps))
    total = sum(stage.steps for stage in stages)
    promises.expect(bool(stages) and total == steps, SPLIT, f"{len(stages)} stages of a run of {steps} have {total}")


def _check_start(promises: Promises, transfer: Transfer, model: Model, anatomy: Anatomy) -> tuple[Plan, nn.Module]:
    torch.manual_seed(0)
    network = model.build(SHAPE, OUTPUTS)
    other, memory = copy.deepcopy(network), _memory(network)
    plan = transfer.build()
    with promises.works("start() takes a model and its anatomy"):
        lines, _ = plan.start(network, anatomy), transfer.build().start(other, anatomy)
    text = not isinstance(lines, str) and all(isinstance(line, str) for line in lines)
    promises.expect(text, ALIKE, f"it returned {lines!r}")
    promises.expect(_memory(network) == memory, ALIKE, "parameters or buffers are other tensors than before")
    one, two = network.state_dict(), other.state_dict()
    differing = [name for name in one if not one[name].equal(two[name])]
    promises.expect(not differing, ALIKE, f"{', '.join(differing)} differ in another process")
    return plan, network


def _memory(network: nn.Module) -> dict[str, int]:
    return {name: value.data_ptr() for name, value in network.state_dict().items()}


def _check_factors(
    promises: Promises, plan: Plan, network: nn.Module, anatomy: Anatomy, stage: Stage
) -> dict[str, Factors]:
    before = copy.deepcopy(network.state_dict())
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    with promises.works(NAMED):
        factors = dict(plan.factors(network, anatomy, stage))
    names = {name for name, _ in network.named_parameters()}
    unknown = sorted(set(factors) - names)
    promises.expect(not unknown, NAMED, f"stage {stage.name}: there is no {', '.join(unknown)}")
    for name, (lr, decay) in factors.items():
        right = 0 <= lr < math.inf and 0 <= decay < math.inf
        promises.expect(right, NAMED, f"stage {stage.name}: {name} has {lr} and {decay}")
    trains = any(factors.get(name, Factors()).lr > 0 for name in names)
    promises.expect(trains, TRAINS, f"in stage {stage.name} every rate is 0")
    after = network.state_dict()
    same = all(after[name].equal(value) for name, value in before.items())
    same = same and [parameter.requires_grad for parameter in network.parameters()] == wanted
    promises.expect(same, UNEDITED, f"weights or requires_grad differ after stage {stage.name}'s")
    return factors


@dataclass
class _Watch(Observer):
    """Keeps the weights after each step, with the stage that the step was of and what trained in it."""

    def __post_init__(self) -> None:
        self.seen: list[tuple[str, set[str], dict[str, Tensor]]] = []

    def build(self) -> object:
        """Return itself."""
        return self

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        """Keep them."""
        trains = {name for group in run.optimizer.param_groups for name in group["names"]}
        self.seen.append((run.stage.name, trains, _state(run)))


def _check_run(promises: Promises, transfer: Transfer, model: Model) -> None:
    with TemporaryDirectory() as folder:
        watch = _Watch()
        given = {
            "transfer": transfer, "model": model, "steps": STEPS, "ema": 0.5,
            "save": SaveOptions(every="1 steps", keep=STEPS),
        }  # fmt: skip
        with promises.works("a run trains through all stages"):
            run = small_run(Path(folder) / "whole", observe={"watch": watch}, **given)
            first = _state(run)
            run.fit()
        _check_frozen(promises, first, watch.seen)
        end, names = _state(run), [stage for stage, _, _ in watch.seen]
        # within each stage, and at its end
        for step in {names.index(name) + 1 for name in names} | {names.index(name) for name in names} - {0}:
            start = Path(folder) / "whole" / "checkpoints" / f"step-{step:08d}"
            with promises.works(RESUMED):
                again = small_run(Path(folder) / str(step), resume=str(start), **given)
                again.fit()
            differing = [name for name, value in _state(again).items() if not value.equal(end[name])]
            promises.expect(not differing, RESUMED, f"from step {step}, {', '.join(differing)} differ")


def _check_frozen(
    promises: Promises, before: Mapping[str, Tensor], seen: Sequence[tuple[str, set[str], dict[str, Tensor]]]
) -> None:
    for stage, trains, state in seen:
        owners = {name.rpartition(".")[0] for name in trains}  # statistics move with their layer's parameters
        moved = [
            name for name, value in state.items()
            if name.rpartition(".")[0] not in owners and not value.equal(before[name])
        ]  # fmt: skip
        promises.expect(not moved, FROZEN, f"{', '.join(moved)} moved in stage {stage}")
        before = state


def _state(run: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}
