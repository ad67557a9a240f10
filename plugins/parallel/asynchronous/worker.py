"""A worker: computes the gradients of steps that the server deals out, from weights that it fetches."""

from __future__ import annotations

import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from engine import Batch, RunFailed, UsageError
from engine.interfaces import Precision
from engine.loader import Loader, Position, Step
from engine.randomness import Key

from ..single import SingleProcess
from .agreeing import facts_of
from .calling import Caller, RunOver
from .links import LinkLost, Message
from .parts import Shards, divided, norm_of
from .rules import Made, Push, Rules, Taken
from .rules import facts_of as parts_of
from .waking import waking

AHEAD = 2  # steps asked for before they are computed, so that one is prepared beside another's computation


class Worker(SingleProcess):
    """Makes the steps that it is dealt; joins anew where the server was lost, as long as ``patience`` seconds.

    It neither evaluates nor saves, and how a step was it tells the server. What it lacks it gets from there.
    """

    leads = False
    follows = True
    capturable = False

    def __init__(self, address: tuple[str, int], interface: str, timeout: float, patience: float) -> None:
        self._server = Caller(address, interface, timeout, patience, "worker")
        self._shards = Shards()
        self._at_work = self._joined = self._over = False
        self.rules = Rules()
        self._version = self._age = self._since_push = 0
        self._dealt: deque[Position] = deque()  # not yet begun
        self._steps: list[Taken] = []  # made since the last push
        self._losses: list[list[Made]] = []
        self._total: list[Tensor | None] = []
        self._bad = False
        self._after: list[Tensor] = []  # buffers after the last step, where others were fetched since

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model as it is."""
        self.model = model
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._kept: list[nn.Parameter] = self._trained  # of which the server that leads has the weights
        self._buffers = list(model.buffers())
        return model

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Take up the key, by which the server sees that the seed is the same."""
        self._key = key

    def steps(self, loader: Loader, position: Position) -> Generator[Step]:
        """Yield the steps that the server deals out, until it has none any more."""
        self._facts = facts_of(self.model, loader, self._key)
        with waking(self._server.stopped.set):
            self._at_work = True
            try:
                while self._server.connected(self._introduce):
                    with suppress(LinkLost):
                        yield from self._rounds(loader)
            except RunOver:
                pass
            finally:
                self._leave()

    def _rounds(self, loader: Loader) -> Iterator[Step]:
        """Yield steps as long as the link holds; where all are with others, wait for those that come back."""
        while self._ask(Message("ask"), patient=True).kind == "go":
            for step in loader.steps_at(self._positions(), AHEAD):
                if self._server.is_lost():
                    break
                start = self._dealt.popleft()
                self._begun = start
                # It says where it begins, never how far the run is: that is the server's to know.
                yield replace(step, start=start, end=start)
                if self._over:
                    raise RunOver
                if self._server.is_lost():
                    break
            if self._server.is_lost():
                raise LinkLost("it was lost while a step was made")
            self._push(fetch=True)

    def _positions(self) -> Iterator[Position]:
        while not self._server.is_lost():
            answer = self._ask(Message("deal"))
            if answer.kind != "step":
                return
            self._dealt.append(Position(answer.facts["step"], answer.facts["sample"]))
            yield self._dealt[-1]

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Run each micro-batch forward and backward, keeping what the network answers: the server wants to know."""
        made: list[Made] = []
        self._after = []

        def kept(batch: Batch, index: int) -> Tensor:
            def outputs() -> Any:
                answer = self.model(batch.images)
                many = list(answer) if isinstance(answer, list | tuple) else [answer]
                single = not isinstance(answer, list | tuple)
                made.append(Made([each.detach() for each in many], batch.targets, batch.samples, single))
                return answer

            return loss_of(batch, index, outputs)

        total = super().forward_backward(kept, batches, weight)
        self._steps.append(Taken(self._begun.step, self._begun.sample, self._version, self._age))
        self._losses.append(made)
        return total

    def any(self, flag: bool) -> bool:
        """Return whether this worker was asked to stop; ``run.max_time`` is the server's to watch."""
        return self._server.stopped.is_set() if self._at_work else flag

    def clip(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        """Leave it to the server, which clips what it gets; where workers update, clip here."""
        return super().clip(parameters, largest) if self.rules.averages else parameters[0].new_zeros(())

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Leave it to the server."""
        return parameters[0].new_zeros(())

    @torch.no_grad()
    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Push gradients and fetch weights, when they are due; with easgd update here, and meet the server."""
        require_plain(precision)
        self._age += 1
        self._since_push += 1
        if self.rules.averages:
            precision.update(optimizer, bad)
            self._bad = self._bad or (self._since_push == self.rules.push and bool(bad))
        else:
            self._add_up()
        try:
            fetch = self._age >= self.rules.fetch
            if self._since_push >= self.rules.push:
                self._push(fetch)
            elif fetch and not self.rules.averages:
                self._after = [buffer.clone() for buffer in self._buffers]  # this may have been the last step
                self._take(self._ask(Message("fetch")))
        except LinkLost:
            self._server.forget()
        except RunOver:
            self._over = True

    def _add_up(self) -> None:
        if not self._total:
            self._total = [parameter.grad for parameter in self._trained]
            return
        for index, parameter in enumerate(self._trained):
            if parameter.grad is not None:
                before = self._total[index]
                self._total[index] = parameter.grad if before is None else before.add_(parameter.grad)

    def _push(self, fetch: bool) -> None:
        """Give the server what was made since the last push, if anything, and take up its answer."""
        if not self._steps:
            return
        gradients: list[Tensor | None] = list(self._trained) if self.rules.averages else self._total
        buffers = self._after or self._buffers
        push = Push(0, self._steps, gradients, buffers, self._bad, losses=self._losses)
        self._clear()
        self._spread(push)
        facts, tensors = parts_of(push)
        self._take(self._ask(Message("push", {**facts, "fetch": fetch}, tensors)))

    def _spread(self, push: Push) -> None:
        """Give the other servers their parts; the one that leads gets the rest, and what it must know of them."""
        if not self._shards.links:
            return
        self._shards.push(push.gradients)
        for index in itertools.chain(*self._shards.parts):
            gradient, push.gradients[index] = push.gradients[index], None
            if gradient is not None:
                push.elsewhere[index] = norm_of(self._trained[index], gradient)
                push.bad = push.bad or not bool(torch.isfinite(gradient).all())

    def _clear(self) -> None:
        self._steps, self._losses, self._total, self._after = [], [], [], []
        self._since_push, self._bad = 0, False

    @torch.no_grad()
    def _take(self, answer: Message) -> None:
        """Take up weights, or a movement towards them."""
        tensors = list(answer.tensors)
        if answer.kind == "moved":
            for parameter, way in zip(self._trained, tensors, strict=True):
                parameter.add_(way.to(parameter.device))
        elif answer.kind in ("weights", "joined"):
            if tensors:
                torch._foreach_copy_([*self._given(answer.kind), *self._buffers], tensors)
            if answer.kind == "weights":
                self._shards.fetch(self._trained, answer.facts["version"])
        else:
            return
        self._version, self._age = answer.facts["version"], 0

    def _given(self, kind: str) -> list[nn.Parameter]:
        """Return the weights that an answer has: at first all, or those that no server updates."""
        if kind == "weights":
            return self._kept
        return [each for each in self.model.parameters() if not (self._shards.links and each.requires_grad)]

    # The link.

    def _introduce(self) -> None:
        """Say who this is, and take up rules and weights."""
        self._clear()
        self._dealt.clear()
        name = f"{socket.gethostname()} process {os.getpid()}"
        answer = self._ask(Message("join", {"name": name, "facts": self._facts}))
        if answer.kind == "refuse":
            self._server.forget()
            # One that had joined before does well to start anew: it may be the code that has changed since.
            kind = RunFailed if self._joined else UsageError
            raise kind(f"parallel: this worker cannot join: {answer.facts['text']}; give both the same")
        self.rules = Rules(**answer.facts["rules"])
        self._divide(answer)
        self._take(answer)
        self._joined = True
        if self._shards.links:
            self._take(self._ask(Message("fetch")))

    def _divide(self, answer: Message) -> None:
        """Join the servers beside the one that leads, if there are any."""
        addresses = answer.facts["shards"]
        parts = divided([parameter.numel() for parameter in self._trained], 1 + len(addresses))
        self._kept = [self._trained[index] for index in parts[0]]
        self._shards = Shards()
        if addresses:
            server = self._server
            token = answer.facts["token"]
            self._shards = Shards.found(addresses, parts[1:], token, server.interface, server.timeout)

    def _ask(self, message: Message, patient: bool = False) -> Message:
        return self._server.ask(message, patient)

    def _leave(self) -> None:
        """Give the server what there is, and say goodbye."""
        with suppress(LinkLost, RunOver):
            if not self._server.is_lost():
                self._push(fetch=False)
                self._ask(Message("leave"))
        self._server.forget()


def require_plain(precision: Precision) -> None:
    """Raise UsageError for a numeric policy that keeps what server and worker would have to have in common."""
    if precision.scale() is not None or precision.calibration:
        raise UsageError(
            f"parallel=async: the numeric policy {type(precision).__name__} has a state (a loss scale, or ranges that "
            "it looks for) that workers cannot share: choose another precision, as bfloat16, or parallel=data"
        )
