"""Training apart: every process makes its own updates, and now and then their weights are brought together.

Local SGD takes the mean (Stich 2019, "Local SGD converges fast and communicates little"), DiLoCo makes a Nesterov step
towards it (Douillard et al. 2023, arXiv 2311.08105). Weights are brought together after every so many steps of the run,
wherever it was stopped and gone on with, so that one all-reduce of the parameters is all that is sent in between.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine import Batch
from engine.backward import one_by_one
from engine.checkpoint import optimizer_state
from engine.distributed.group import Group
from engine.distributed.together import Together, average_
from engine.interfaces import Piece, Precision
from engine.loader import Loader, Position, Step


class Outer(Protocol):
    """How the parameters that all have in common follow from the mean of what each has made of the last ones."""

    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        """Take note of the parameters in common, from which each process goes on by itself."""
        return None

    def end(self, parameters: Mapping[str, Tensor]) -> None:
        """Replace the mean of the processes' parameters by those that they go on with, in place."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return what a resume needs, its own memory, by name."""
        return {}

    def load(self, state: Any, parameters: Mapping[str, Tensor]) -> bool:
        """Make room for the tensors that a checkpoint says it has; return whether a round can go on with them."""
        return True

    def state(self) -> Any:
        """Return, for ``load``, which tensors there are."""
        return None


class Average(Outer):
    """The mean itself."""


class Nesterov(Outer):
    """SGD with Nesterov momentum, whose gradient is the last common parameters less the mean, as DiLoCo has it.

    With m = momentum x m + gradient, parameters = last - lr x (gradient + momentum x m).
    """

    def __init__(self, lr: float, momentum: float) -> None:
        self._lr, self._momentum = lr, momentum
        self._last: dict[str, Tensor] = {}  # of the round under way
        self._velocity: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        """Take note of the parameters in common, unless the round was begun before a resume."""
        if not self._last:
            self._last = {name: parameter.clone() for name, parameter in parameters.items()}
        if self._velocity.keys() != parameters.keys():  # at the start, and where other parameters train now
            self._velocity = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    @torch.no_grad()
    def end(self, parameters: Mapping[str, Tensor]) -> None:
        """Step from the last parameters in common."""
        means, velocity = list(parameters.values()), [self._velocity[name] for name in parameters]
        last = [self._last[name] for name in parameters]
        gradient = torch._foreach_sub(last, means)
        torch._foreach_mul_(velocity, self._momentum)
        torch._foreach_add_(velocity, gradient)
        torch._foreach_add_(gradient, velocity, alpha=self._momentum)
        torch._foreach_add_(last, gradient, alpha=-self._lr)
        torch._foreach_copy_(means, last)
        self._last = {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the momentum and, within a round, what it began with."""
        named = {"last": self._last, "velocity": self._velocity}
        return {f"{kind}/{name}": value for kind, values in named.items() for name, value in values.items()}

    def state(self) -> list[bool]:
        """Return whether there is a momentum, and whether a round is under way."""
        return [bool(self._velocity), bool(self._last)]

    def load(self, state: Any, parameters: Mapping[str, Tensor]) -> bool:
        """Make room for both; a round goes on only with what it began with."""
        begun, under_way = state or (False, False)  # the checkpoint of another way has neither
        self._velocity = {name: torch.zeros_like(p) for name, p in parameters.items()} if begun else {}
        self._last = {name: p.detach().clone() for name, p in parameters.items()} if under_way else {}
        return under_way


class LocalTraining(Together):
    """Lets each process update its own parameters, and brings them together by ``outer`` after every ``every`` steps.

    A process's gradients are those of the mean over its share of the samples; the first ``warm_up`` steps average the
    gradients instead (Lin et al. 2020, "Don't use large mini-batches, use local SGD"). Each keeps its optimiser's state
    to itself, and masks its own steps; a stop is heeded when weights are brought together. BatchNorm's statistics are
    averaged then. Evaluations see the mean over processes, and so does whoever loads a checkpoint, but for a resume of
    as many processes: it goes on with what each of them had, as if nothing had been.
    """

    equal_shares = True  # so that the mean over processes is the mean over samples

    def __init__(self, outer: Outer, every: int, warm_up: int) -> None:
        super().__init__()
        self._outer, self._every, self._warm_up = outer, every, warm_up
        self._made = 0  # steps of the run
        self._apart = False  # whether each process has made steps of its own since all had the same parameters
        self._parameters: dict[str, Tensor] = {}
        self._statistics: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def _warming(self) -> bool:
        return self._made < self._warm_up

    @property
    def _meets(self) -> bool:
        """Whether the processes meet in the step under way."""
        return self._warming or (self._made + 1 - self._warm_up) % self._every == 0

    def shard(self, model: nn.Module) -> nn.Module:
        """Bring together what a stage before has left apart; every process has the whole model."""
        if self._apart:
            self._meet()
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        """Take note of what trains; the model stays as it is."""
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._statistics = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        return model

    def prepare(self, optimizer: torch.optim.Optimizer, key: Any) -> None:
        """Take up the optimiser, whose state is this process's own."""
        self._optimizer = optimizer

    def steps(self, loader: Loader, position: Position) -> Generator[Step]:
        """Return the loader's steps; where the run stands decides when weights are brought together."""
        self._made = position.step
        return loader.steps(position)

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Run each micro-batch forward and backward; gradients are those of this process's samples, world times."""
        if not self._warming:
            self._outer.begin(self._parameters)
        total = one_by_one(loss_of, batches, weight * self.world)
        if self._warming:
            gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
            average_(self.group, gradients, "gradients")
            average_(self.group, self._statistics.values(), "statistics")
        return total

    def agree(self, bad: Tensor) -> Tensor:
        """Return, in place, whether any process's ``bad`` is 1.0 in a step after which they meet, else its own."""
        return super().agree(bad) if self._meets else bad

    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply this process's step unless its ``bad`` is 1.0; bring the parameters together when due."""
        super().update(precision, optimizer, bad)
        together = self._meets and not self._warming
        self._apart = not self._meets
        self._made += 1
        if together:
            self._meet()

    @torch.no_grad()
    def _meet(self) -> None:
        average_(self.group, [*self._parameters.values(), *self._statistics.values()], "parameters")
        self._outer.end(self._parameters)
        self._apart = False

    def any(self, flag: bool) -> bool:
        """Return whether any process raises ``flag``; while they train apart that is put off to when they meet."""
        if self.world == 1:
            return flag
        if self._apart:
            return False
        return bool(self.group.all_reduce(torch.tensor([float(flag)]), "stop", True).item())

    def common(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the means of floating-point tensors over processes, and what all have alike bit for bit."""
        return mean_of(self.group, state) if self.world > 1 else state

    def tensors(self, own: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Return the outer optimiser's tensors, and what is this process's own, as a row of one tensor for all."""
        held = {name: Piece.whole(values, self.leads) for name, values in self._outer.tensors().items()}
        rows = {**self._own(), **own} if self.world > 1 else {}
        return held | {f"own/{name}": self._row(values) for name, values in rows.items()}

    def _own(self) -> dict[str, Tensor]:
        if self._optimizer is None:
            return {}
        states, _ = optimizer_state(self._optimizer)
        apart = self._parameters if self._apart else {}
        return {**apart, **self._statistics, **{f"optimizer/{name}": values for name, values in states.items()}}

    def _row(self, values: Tensor) -> Piece:
        values = values.detach()
        return Piece(values[None], (self.world, *values.shape), (self.rank, *(0,) * values.ndim))

    def describe(self) -> str:
        """Return how many processes there are, how they are connected, and when they meet."""
        apart = f"{self.world} train apart, and meet after every {self._every} steps"
        return f"{super().describe()}\n{apart}" if self.world > 1 else ""

    def state(self) -> dict[str, Any]:
        """Return which tensors there are."""
        return {"world": self.world, "apart": self._apart, "outer": self._outer.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Make room for the tensors of a checkpoint; as many processes go on apart, others with the mean."""
        goes_on = self._outer.load(state["outer"], self._parameters)
        self._apart = state["apart"] and state["world"] == self.world and goes_on


@torch.no_grad()
def mean_of(group: Group, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state's floating-point tensors as means over all processes, in copies; where all are alike, as they are.

    The mean is that of the differences from rank 0's, so that nothing is rounded where there are none.
    """
    means = dict(state)
    kinds: dict[Any, list[str]] = {}
    for name, values in state.items():
        if values.is_floating_point():
            kinds.setdefault((values.device, values.dtype), []).append(name)
    for names in kinds.values():
        own = torch.cat([state[name].detach().flatten() for name in names])
        first = group.broadcast(own.clone(), 0, "state")
        difference = torch.where(own == first, 0, own - first)  # infinite ones, too
        mean = group.all_reduce(difference, "state").div_(group.world).add_(first)
        for name, values in zip(names, mean.split([state[name].numel() for name in names]), strict=True):
            means[name] = values.view_as(state[name])
    return means
