"""What the processes of the tests of local SGD do, and the same algorithm in one process on plain torch."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from spoilt import SpoiltData
from told import Told
from torch import Tensor, nn
from torch.nn import functional

from engine import Model, Optim, RunFailed, hookimpl
from engine.distributed import current
from engine.options import Observer, Parallel, SaveOptions
from engine.plugins.parallel import Data, LocalSGD
from engine.plugins.precision import Float64
from engine.state import own_of
from engine.testing import small_run
from engine.testing.processes import bytes_sent


@dataclass
class Smooth(Model):
    """A network without BatchNorm or dropout; ``width`` makes it large."""

    width: int = 5

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        layers = [nn.Conv2d(inputs[0], 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, self.width), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(self.width, outputs))


@dataclass
class PlainSGD(Optim):
    """SGD, with momentum if asked for."""

    momentum: float = 0.0

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, self.lr, self.momentum)


EXACT = {"model": Smooth(), "precision": Float64(), "batch": 6, "evaluate_every": "never", "save": SaveOptions("never")}


Jobs = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def each(jobs: Jobs) -> dict[str, Any]:
    """Return what several functions return, by name: processes need not be started for each of them."""
    return {name: function(*arguments) for name, (function, arguments) in jobs.items()}


def weights_of(run: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def trained(out: Path, **settings: Any) -> dict[str, Tensor]:
    """Return the weights of a small run, fitted to its end."""
    run = small_run(out, **settings)
    run.fit()
    run.lock.close()
    return weights_of(run)


def trained_each(out: Path, several: dict[str, dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """Return the weights of several runs, by name."""
    return {name: trained(out / name, **settings) for name, settings in several.items()}


def emulated(out: Path, world: int, every: int, nesterov: bool, momentum: float, steps: int) -> dict[str, Tensor]:
    """Return what ``world`` copies of a network come to, in one process, after they met every ``every`` steps."""
    run = small_run(out, optim=PlainSGD(), steps=steps, **EXACT)
    common = run.model
    outer = torch.optim.SGD(common.parameters(), 0.7, 0.9, nesterov=True)
    copies = [copy.deepcopy(common) for _ in range(world)]
    inner = [torch.optim.SGD(each.parameters(), PlainSGD().lr, momentum) for each in copies]
    for number, step in zip(range(1, steps + 1), run.loader.steps(run.position), strict=False):
        (batch,) = step.batches
        shares = zip(batch.images.chunk(world), batch.targets.chunk(world), strict=True)
        for network, optimizer, (images, targets) in zip(copies, inner, shares, strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(network(images), targets).backward()
            optimizer.step()
        if number % every == 0:
            for own, *others in zip(common.parameters(), *(each.parameters() for each in copies), strict=True):
                mean = torch.stack([other.detach() for other in others]).mean(0)
                if nesterov:
                    own.grad = own.detach() - mean
                else:
                    own.data.copy_(mean)
            if nesterov:
                outer.step()
            for each in copies:
                each.load_state_dict(common.state_dict())
    run.lock.close()
    return weights_of(run)


def sent_in(out: Path, parallel: Parallel, steps: int) -> int:
    """Return how many bytes the network of all processes carries for a run with so many steps."""
    group = current()
    run = small_run(out, parallel=parallel, steps=steps, **EXACT | {"model": Smooth(4000), "log_every": 1000})
    group.exchange("ready")
    before = bytes_sent()
    run.fit()
    group.exchange("done")
    run.lock.close()
    return bytes_sent() - before


def sent_by_updates(out: Path, every: int) -> tuple[int, int]:
    """Return the bytes that 16 more steps send in data parallelism, and by processes that meet after ``every``."""
    several = {"data": Data(verify_every=0), "apart": LocalSGD(every=every)}
    data, apart = (
        sent_in(out / f"{name}-32", parallel, 32) - sent_in(out / f"{name}-16", parallel, 16)
        for name, parallel in several.items()
    )
    return data, apart


@dataclass
class After(Observer):
    """Calls a function once a step is made."""

    then: Any = None

    def build(self) -> object:
        return self

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        self.then(run)


def raise_signal(run: Any) -> None:
    """Ask this process to stop after step 5; only rank 0 has observers."""
    if run.position.step == 5:
        os.kill(os.getpid(), signal.SIGUSR1)


def stopped(out: Path) -> tuple[str, int]:
    """Return how a run ends, and when, whose rank 0 is asked to stop after step 5; they meet every 3 steps."""
    run = small_run(out, parallel=LocalSGD(every=3), observe={"after": After(raise_signal)})
    outcome = run.fit()
    return outcome, run.position.step


SPOILT = {"data": SpoiltData(), "model": Smooth(), "steps": 5, "evaluate_every": "never"}


def failed(out: Path) -> tuple[str, bool]:
    """Return the error of a run in which one process alone meets what is not finite; they meet in step 4."""
    run = small_run(out, parallel=LocalSGD(every=4), **SPOILT)
    try:
        run.fit()
    except RunFailed as error:
        return str(error), all(torch.isfinite(value).all() for value in run.model.state_dict().values())
    return "nothing", True


REAL = {"steps": 12, "ema": 0.8, "clip": 1.0}  # BatchNorm, dropout, momentum: the small run's own


# The image that is not a number comes to one process alone, in step 3 or 4 and then in step 6 or 7 of 10.
SKIPPING = SPOILT | {"nonfinite": "skip", "steps": 10, "ema": 0.8}


def interrupted(
    out: Path, parallel: Parallel, at: Sequence[int], settings: dict[str, Any] = REAL
) -> list[dict[str, Any]]:
    """Return what a run comes to, and then others that were ended after so many steps and resumed."""
    whole = small_run(out / "whole", parallel=parallel, **settings)
    whole.fit()
    ends = [everything(whole)]
    for steps in at:
        first = small_run(out / str(steps), parallel=parallel, **settings | {"steps": steps})
        first.fit()
        first.lock.close()
        current().exchange("the folder is free")
        second = small_run(out / str(steps), parallel=parallel, resume="auto", **settings)
        assert second.position.step == steps
        second.fit()
        ends.append(everything(second))
    return ends


def everything(run: Any) -> dict[str, Any]:
    """Return a run's own tensors."""
    states = {
        f"{name}/{entry}": value
        for group in run.optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for entry, value in run.optimizer.state[parameter].items()
    }
    outer = {f"outer/{name}": piece.values for name, piece in run.strategy.tensors(own_of(run)).items()}
    return {name: value.clone() for name, value in {**weights_of(run), **states, **outer}.items()}


def interfered(out: Path) -> list[dict[str, Tensor]]:
    """Return the weights of a run that only trains, and of one that evaluates, saves and logs after every step."""
    often = {"evaluate_every": "1 step", "save": SaveOptions("1 step"), "log_every": 1}
    return [
        trained(out / "never", parallel=LocalSGD(every=5, outer="nesterov"), **REAL | {"evaluate_every": "never"}),
        trained(out / "often", parallel=LocalSGD(every=5, outer="nesterov"), **REAL | often),
    ]


def saved_apart(out: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Return this process's own weights where a run was evaluated and saved while processes trained apart."""
    told = Told()
    settings = {"steps": 7, "evaluate_every": "7 steps", "observe": {"told": told}}
    return trained(out, parallel=LocalSGD(every=5), **settings), [scalars["test/loss"] for scalars in told.evaluated]


def resumed(out: Path, origin: Path, batch: int, outer: str) -> tuple[int, str, dict[str, Tensor]]:
    """Return where a run goes on with what was saved after step 7, how it ends, and the weights all meet with then."""
    parallel, saved = LocalSGD(every=5, outer=outer), str(origin / "checkpoints/step-00000007")
    run = small_run(out, parallel=parallel, batch=batch, steps=10, resume=saved)
    return run.position.step, run.fit(), weights_of(run)
