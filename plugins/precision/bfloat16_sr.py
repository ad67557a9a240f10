"""Weights in bfloat16 without a float32 copy, whose updates survive rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine import Key
from engine.interfaces import Precision
from engine.loader import Position
from engine.masking import masked_step
from engine.ops import add_bfloat16, round_bfloat16

from .autocast import autocast, device_of, normalization_parameters


@dataclass(eq=False)
class Narrow:
    """A bfloat16 parameter; ``wide`` stands for it, in float32, while the optimiser steps, and is empty else."""

    parameter: nn.Parameter
    wide: nn.Parameter
    key: int
    compensation: Tensor | None  # Kahan's, of the parameter's shape and type


class Bfloat16SR(Precision):
    """Weights are bfloat16, without another copy; what an update adds to them is not lost.

    rounding: of a parameter after its update. "stochastic" rounds up or down at random, right on average; "kahan" keeps
    what rounding to the nearest loses, in bfloat16, for the next update; "nearest" loses it (Zamirai et al.,
    "Revisiting BFloat16 training", 2020). Layers compute in torch's autocast, as with float32 weights. Parameters and
    statistics of normalising layers, gradients once they are complete, and whatever optimiser's arithmetic and state
    are float32. Images and targets arrive in float32, which labels and regressions need; a layer casts what it reads.
    """

    dtype = torch.float32
    capturable = True

    def __init__(self, rounding: str = "stochastic") -> None:
        self._rounding = rounding
        self._device = torch.device("cpu")  # of the model, once it is converted
        self._narrow: dict[str, Narrow] = {}
        self._attempts = torch.zeros(1, dtype=torch.int64)  # what draws depend on: a graph's replay counts by itself
        self._vanished = torch.zeros(2, dtype=torch.float64)  # of updates other than 0: those that changed nothing, all
        self._watched = False

    def convert(self, model: nn.Module) -> nn.Module:
        """Return the model with bfloat16 parameters, but for those of normalising layers."""
        self._device = device_of(model)
        wide = normalization_parameters(model)
        model = model.to(torch.float32)
        for name, parameter in model.named_parameters():
            if name not in wide:
                parameter.data = parameter.data.to(torch.bfloat16)
                parameter.grad_dtype = torch.float32  # micro-batches' gradients add up in that, and norms are of that
        return model

    def prepare(self, model: nn.Module, optimizer: Optimizer, key: Key) -> None:
        """Make the optimiser's state float32, where there is some, and Kahan's compensation, where there is none.

        Draws depend on the key, a parameter's name, how many steps were attempted, and an element's place.
        """
        before, self._narrow = self._narrow, {}
        self._attempts, self._vanished = self._attempts.to(self._device), self._vanished.to(self._device)
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.bfloat16:
                continue
            kept = before[name].compensation if name in before else None
            if kept is None and self._rounding == "kahan":
                kept = torch.zeros_like(parameter, requires_grad=False)
            wide = nn.Parameter(torch.empty(0, device=parameter.device))
            self._narrow[name] = Narrow(parameter, wide, key.at(name).value, kept)
            if state := optimizer.state.get(parameter):
                state |= {entry: _widened(value) for entry, value in state.items()}

    def computing(self, position: Position, watched: bool) -> AbstractContextManager[None]:
        """Take note of whether the step is watched."""
        self._watched = watched
        return nullcontext()

    def forward(self, samples: Tensor | None = None) -> torch.autocast:
        """Return autocast's context."""
        return autocast(self._device, torch.bfloat16)

    @torch.no_grad()
    def update(self, optimizer: Optimizer, bad: Tensor) -> None:
        """Step in float32, unless ``bad`` is 1.0, and round what is to be kept."""
        trained = [each for each in self._narrow.values() if each.parameter.grad is not None]
        with standing_in(optimizer, {each.parameter: each.wide for each in self._narrow.values()}):
            masked_step(optimizer, bad)
            for each in trained:
                self._store(each, bad)
        self._attempts += 1

    def export(self, model: nn.Module) -> nn.Module:
        """Return the model in float32, with the same values."""
        return model.to(torch.float32)

    def telemetry(self) -> dict[str, Tensor]:
        """Return the share of updates other than zero that left no trace, in watched steps since the last time.

        Stochastic rounding makes up for it by larger steps of others.
        """
        share = self._vanished[0] / self._vanished[1].clamp(min=1)
        self._vanished.zero_()
        return {"precision/vanished_updates": share}

    def state(self) -> dict[str, Tensor]:
        """Return how many steps were attempted, and Kahan's compensation."""
        kept = {name: each.compensation for name, each in self._narrow.items()}
        return {"attempts": self._attempts} | {f"compensation/{n}": c for n, c in kept.items() if c is not None}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what ``state`` returned; after another rounding nothing has been kept, which is what zeros say."""
        self._attempts.copy_(state["attempts"])
        for name, each in self._narrow.items():
            if each.compensation is not None and (kept := state.get(f"compensation/{name}")) is not None:
                each.compensation.copy_(kept)

    def _store(self, each: Narrow, bad: Tensor) -> None:
        """Keep what the optimiser made of a parameter; a masked step, which made nothing of it, changes no bit."""
        traces = [each.parameter] if each.compensation is None else [each.parameter, each.compensation]
        compensated = each.compensation is not None
        before = [trace.clone() for trace in traces] if compensated or self._watched else []
        self._round(each)
        if compensated:  # adding nothing but what was kept may be the half of an ulp that tips a weight over
            for trace, old in zip(traces, before, strict=True):
                trace.copy_(torch.where(bad > 0, old, trace))
        if self._watched:
            moved = each.wide != before[0]
            vanished = moved
            for trace, old in zip(traces, before, strict=True):
                vanished = vanished & torch.eq(trace, old)
            self._vanished += torch.stack([vanished.sum(), moved.sum()])

    def _round(self, each: Narrow) -> None:
        parameter, wide = each.parameter, each.wide.data
        if each.compensation is not None:
            add_bfloat16(parameter, wide - parameter.float(), mode="kahan", compensation=each.compensation)
        elif self._rounding == "stochastic":
            round_bfloat16(wide, mode="stochastic", key=each.key, step=self._attempts, out=parameter)
        else:
            parameter.copy_(wide)


@contextmanager
def standing_in(optimizer: Optimizer, stand_ins: Mapping[nn.Parameter, nn.Parameter]) -> Iterator[None]:
    """Within ``with``, an optimiser has other parameters in place of some, with their values, gradients and state.

    One without a gradient has an empty stand-in: an optimiser may keep lists of all, and leaves such a one alone. All
    are empty afterwards; what has become of their values is up to who is within.
    """
    for parameter, wide in stand_ins.items():
        if parameter.grad is not None:
            wide.data, wide.grad = parameter.detach().to(wide.dtype), parameter.grad.to(wide.dtype)
    own = [list(group["params"]) for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["params"][:] = [stand_ins.get(parameter, parameter) for parameter in group["params"]]
        _rename(optimizer.state, stand_ins)
        yield
    finally:
        _rename(optimizer.state, {wide: parameter for parameter, wide in stand_ins.items()})
        for group, parameters in zip(optimizer.param_groups, own, strict=True):
            group["params"][:] = parameters
        give_back(stand_ins.values())


def give_back(stand_ins: Iterable[nn.Parameter]) -> None:
    """Free the memory of stand-ins."""
    for wide in stand_ins:
        wide.grad, wide.data = None, wide.data.new_empty(0)


def _rename(state: dict[Any, Any], names: Mapping[nn.Parameter, nn.Parameter]) -> None:
    for old, new in names.items():
        if old in state:
            state[new] = state.pop(old)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
