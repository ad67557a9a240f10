"""The server that leads others: it keeps a part of the weights itself, and orders what the others do with theirs."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from engine import RunFailed
from engine.interfaces import Precision
from engine.randomness import Key

from .agreeing import difference, optimizer_fact
from .applying import require_unrounded
from .links import Message, pack
from .listening import Event, Member
from .parts import divided, handed_over, take_over
from .rules import Push, Rules
from .server import ParameterServer
from .words import say
from .worker import require_plain


class LeadingServer(ParameterServer):
    """A parameter server of ``servers``: gradients and weights of the others' parts do not pass through it.

    Each push and each fetch is an order to all of them, in one order, so that a version means the same everywhere.
    Before evaluations and saves it takes the others' weights and optimiser state, and then holds the whole.
    """

    def __init__(
        self, servers: int, rules: Rules, address: tuple[str, int], interface: str, timeout: float, trace: str
    ) -> None:
        super().__init__(rules, address, interface, timeout, trace)
        self._servers = servers
        self._life = secrets.token_hex(4)  # tells this process's workers from those of one that died
        self._shards: list[Member] = []
        self._addresses: list[tuple[str, int]] = []
        self._ready: set[int] = set()  # the numbers of those members that have begun
        self._later: deque[Event] = deque()  # what came while something else was waited for
        self._whole = 0  # the version of the others' parts in the model here
        self._clipped: tuple[float, Tensor] | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model as it is. Raises UsageError if it has fewer tensors than there are servers."""
        super().wrap(model)
        self._parts = divided([parameter.numel() for parameter in self.trained], self._servers)
        self.kept = [self.trained[index] for index in self._parts[0]]
        self._number = {id(parameter): index for index, parameter in enumerate(self.trained)}
        return model

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Take up the optimiser. Raises UsageError for a numeric policy whose state or rounding is of all weights."""
        super().prepare(optimizer, key)
        assert self.precision is not None, "the engine has set it"
        require_plain(self.precision)
        require_unrounded(self.precision, f"parallel.servers={self._servers}")

    # The other servers.

    def _next_push(self) -> Push | None:
        """Return what is to be applied next, once all servers are there; None, holding the whole, after a signal."""
        push = super()._next_push() if self._complete() else None
        if push is None and self._shards:
            self._pull()
        return push

    def _complete(self) -> bool:
        """Wait until all servers are there; False if a signal comes first."""
        if len(self._ready) == self._servers - 1:
            return True
        self._whole = self.version
        later = []
        while len(self._ready) < self._servers - 1:
            event = self._next_event()
            if event.member is None:
                return False
            if event.message is None:
                self._lose(event.member, event.lost)
            elif event.message.kind == "serve":
                self._begin_with(event.member, event.message)
            elif event.message.kind == "next":
                self._ready.add(event.member.number)
            else:
                later.append(event)
        self._later.extendleft(reversed(later))
        say(f"all {self._servers} servers are there")
        return True

    def _begin_with(self, member: Member, message: Message) -> None:
        assert self.optimizer is not None, "``prepare`` comes first"
        ours = self._facts | {"optimizer": optimizer_fact(self.optimizer)}
        text = difference(ours, message.facts["facts"])
        if len(self._shards) == self._servers - 1:
            text = f"all {self._servers} servers of the run are there (parallel.servers)"
        if text:
            member.answer(Message("refuse", {"text": text}))
            return
        self._shards.append(member)
        self._addresses.append(tuple(message.facts["address"]))
        server = len(self._shards)
        part = handed_over(self.trained, self._parts[server], self.optimizer)
        where = {"server": server, "servers": self._servers, "version": self.version, "life": self._life}
        member.answer(pack(Message("begin", {**part.facts, **where}, part.tensors)))

    def _order(self, kind: str, facts: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> None:
        order = pack(Message(kind, facts, tensors))
        for shard in self._shards:
            shard.answer(order)

    def _token(self, member: Member) -> str:
        return f"{self._life}/{member.number}"

    def _next_event(self) -> Event:
        return self._later.popleft() if self._later else super()._next_event()

    def _answer(self, member: Member, message: Message) -> Push | None:
        match message.kind:
            case "next":
                return None
            case "serve":
                self._begin_with(member, message)
                return None
        return super()._answer(member, message)

    def _lose(self, member: Member, reason: str) -> None:
        if member in self._shards:
            self._abandoned = True
            server = self._shards.index(member)
            host, port = self._addresses[server]
            raise RunFailed(
                f"server {server + 2} of {self._servers} ({host}:{port}) is lost ({reason}), and with it what its part "
                "of the weights has learnt since the newest checkpoint: start the servers again with resume=auto"
            )
        super()._lose(member, reason)

    @torch.no_grad()
    def _pull(self) -> None:
        """Take up the others' weights and optimiser state, unless they are here."""
        if self._whole == self.version or len(self._ready) < self._servers - 1:
            return
        assert self.optimizer is not None, "``prepare`` comes first"
        self._order("pull", {})
        missing, later = set(self._ready), deque[Event]()
        while missing:
            event = super()._next_event()
            if event.member in self._shards and event.message is None:
                self._lose(event.member, event.lost)
            elif event.member in self._shards and event.message is not None:
                if event.message.kind == "part":
                    part = self._parts[1 + self._shards.index(event.member)]
                    take_over(self.trained, part, self.optimizer, event.message)
                    missing.discard(event.member.number)
            else:
                later.append(event)
        self._later.extend(later)
        self._whole = self.version

    # What workers get, and what is done with what they push.

    def _welcome(self, member: Member) -> Message:
        facts = super()._welcome(member).facts
        frozen = [parameter for parameter in self.model.parameters() if not parameter.requires_grad]
        where = {"shards": self._addresses, "token": self._token(member)}
        return Message("joined", {**facts, **where}, [*frozen, *self.buffers])

    def _give_weights(self, member: Member) -> None:
        self._order("give", {"token": self._token(member)})
        super()._give_weights(member)

    def _receive(self, member: Member, message: Message) -> Push | None:
        push = super()._receive(member, message)
        if push is None:
            self._order("drop", {"token": self._token(member)})
        return push

    def _forget(self, member: Member) -> None:
        super()._forget(member)
        self._order("forget", {"token": self._token(member)})

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the global norm of all servers' gradients, of which workers have told the others'."""
        if not self._taken:
            return parameters[0].new_zeros(())
        norms = torch.stack(list(self._norms(parameters)) or [parameters[0].new_zeros(())])
        return torch.linalg.vector_norm(norms)

    def _norms(self, parameters: Sequence[Tensor]) -> Iterator[Tensor]:
        elsewhere = self._pushed[0].elsewhere
        for parameter in parameters:
            told = elsewhere.get(self._number[id(parameter)])
            if told is not None:
                yield parameter.new_tensor(told)
            elif parameter.grad is not None:
                yield torch.linalg.vector_norm(parameter.grad)

    def clip(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        """Scale gradients here, and with the update elsewhere, so that the norm of all is at most ``largest``."""
        norm = super().clip(parameters, largest)
        self._clipped = (largest, norm) if self._taken else None
        return norm

    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply a push with its last step, here and in the other servers; then its worker is answered."""
        push, member, _ = self._pushed
        if self._is_last(push):
            rates = [group["lr"] * self._rate for group in optimizer.param_groups]
            clip = self._clipped[0] if self._clipped else None
            tensors = [bad, *([self._clipped[1]] if self._clipped else []), *rates]
            facts = {"token": self._token(member), "version": self.version + 1, "clip": clip}
            self._order("apply", facts, tensors)
        super().update(precision, optimizer, bad)
        self._clipped = None

    # What the loop asks.

    def common(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the state, once the others' parts are in it."""
        self._pull()
        return state

    def evaluating(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the model holds all parts."""
        self._pull()
        return nullcontext()

    def describe(self) -> str:
        """Return in a line what the servers do."""
        return f"{super().describe()}; weights in {self._servers} servers"
