"""A server beside the one that leads: keeps a part of the weights, and does with it what that one orders.

Workers give it their gradients and take its weights directly; in which order they are applied, at which rate, and
which version a worker gets comes from the one that leads, in orders of a few numbers. So all servers make the same
updates, and a version is one state of all weights.
"""

from __future__ import annotations

import socket
import threading
from collections import defaultdict, deque
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from engine import RunFailed, UsageError
from engine.distributed.joining import LOOPBACK
from engine.distributed.joining import address_of as address_of_interface
from engine.loader import Loader, Position, Step
from engine.randomness import Key

from ..single import SingleProcess
from .agreeing import facts_of, optimizer_fact
from .calling import Caller, RunOver
from .links import LinkLost, Message, Packed, interface_to, pack
from .listening import Event, Listening, Member
from .parts import divided, handed_over, take_over
from .waking import waking
from .words import say

TAKEN, LOST = Message("taken"), Message("lost")


class Shard(SingleProcess):
    """Serves a part of the weights until the run is over; where the one that leads was lost, waits for the next one.

    From that it then gets its part anew, as of the newest checkpoint.
    """

    leads = False
    follows = True
    capturable = False

    def __init__(self, address: tuple[str, int], interface: str, timeout: float, patience: float) -> None:
        self._leader = Caller(address, interface, timeout, patience, "server of a part (role=shard)")
        self._joined = False
        self._part: list[int] = []
        self._version = 0
        self._packed: Packed | None = None  # the weights of this version
        self._lock = threading.Lock()  # of what follows: threads that listen to workers change it, too
        self._life = "none"  # of the one that leads; workers' tokens begin with it
        self._members: dict[str, Member] = {}  # by token
        self._pushes: defaultdict[str, deque[list[Tensor | None]]] = defaultdict(deque)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model as it is."""
        self.model = model
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return model

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Take up the optimiser, of which the part's state is used, and the key."""
        self._optimizer, self._key = optimizer, key

    def steps(self, loader: Loader, position: Position) -> Generator[Step]:
        """Serve until the run is over; no step is made here."""
        self._facts = facts_of(self.model, loader, self._key) | {"optimizer": optimizer_fact(self._optimizer)}
        listening = self._listening()
        self._address = listening.address, listening.port
        try:
            with waking(self._leader.stopped.set), suppress(RunOver):
                while self._leader.connected(self._introduce):
                    with suppress(LinkLost):
                        self._serve()
                    self._leader.forget()
                    self._release()
        finally:
            self._release()
            listening.close()
        yield from ()

    def any(self, flag: bool) -> bool:
        """Return False: when to end says the one that leads, which needs this part for its last checkpoint."""
        return False

    def _listening(self) -> Listening:
        """Open a port for workers, where they reach it as they do the server that leads."""
        interface = interface_to(self._leader.address[0], self._leader.interface)
        own = "127.0.0.1" if interface == LOOPBACK else address_of_interface(interface)
        return Listening(own, 0, interface, self._leader.timeout, self._hear)

    # What workers say, each in a thread of its own.

    def _hear(self, event: Event) -> None:
        member, message = event.member, event.message
        if member is None:
            return
        with self._lock:
            if message is None:
                if self._members.get(member.name) is member:
                    self._members.pop(member.name)
            elif message.kind == "hello":
                member.name = message.facts["token"]
                self._members[member.name] = member
                member.answer(TAKEN)
            elif message.kind == "push":
                if member.name.startswith(self._life):
                    self._pushes[member.name].append(gradients_of(message))
                member.answer(TAKEN)
            # A "fetch" is answered when the one that leads orders it.

    # What the one that leads orders.

    def _introduce(self) -> None:
        facts = {"name": f"{socket.gethostname()} at {self._address[0]}:{self._address[1]}", "facts": self._facts}
        answer = self._leader.ask(Message("serve", {**facts, "address": list(self._address)}))
        if answer.kind == "refuse":
            self._leader.forget()
            kind = RunFailed if self._joined else UsageError
            raise kind(f"parallel: this server of a part cannot join: {answer.facts['text']}")
        sizes = [parameter.numel() for parameter in self._trained]
        self._part = divided(sizes, answer.facts["servers"])[answer.facts["server"]]
        take_over(self._trained, self._part, self._optimizer, answer)
        with self._lock:
            self._life = answer.facts["life"]
        self._version, self._packed, self._joined = answer.facts["version"], None, True
        say(f"server {answer.facts['server'] + 1} of {answer.facts['servers']} serves {len(self._part)} tensors")

    def _release(self) -> None:
        """Let workers know that the run is lost to this server, whatever they ask next."""
        with self._lock:
            for member in self._members.values():
                member.answer(LOST)
            self._members.clear()
            self._pushes.clear()
            self._life = "none"

    def _serve(self) -> None:
        """Do one order after the other, until the link is lost or the run is over."""
        report = Message("next")
        while True:
            order = self._leader.ask(report)
            report = Message("next")
            token = order.facts.get("token", "")
            match order.kind:
                case "apply":
                    self._apply(self._taken(token), order)
                case "give":
                    self._give(token)
                case "drop":
                    self._taken(token)
                case "forget":
                    with self._lock:
                        self._pushes.pop(token, None)
                case "pull":
                    report = handed_over(self._trained, self._part, self._optimizer)

    def _taken(self, token: str) -> list[Tensor | None]:
        with self._lock:
            return self._pushes[token].popleft()

    @torch.no_grad()
    def _apply(self, gradients: list[Tensor | None], order: Message) -> None:
        """Update the part with gradients as one server would that had it all."""
        own = [self._trained[index] for index in self._part]
        for parameter, gradient in zip(own, gradients, strict=True):
            if gradient is not None:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
        bad, *rest = order.tensors
        if order.facts["clip"] is not None:
            norm, *rest = rest
            clip_grads_with_norm_(own, order.facts["clip"], norm.to(own[0].device))
        for group, rate in zip(self._optimizer.param_groups, rest, strict=True):
            group["lr"].copy_(rate)
        assert self.precision is not None, "the engine has set it"
        self.precision.update(self._optimizer, bad.to(own[0].device))
        for parameter in own:
            parameter.grad = None
        self._version, self._packed = order.facts["version"], None

    def _give(self, token: str) -> None:
        if self._packed is None:
            own = [self._trained[index] for index in self._part]
            self._packed = pack(Message("weights", {"version": self._version}, own))
        with self._lock:
            member = self._members.get(token)
        if member is not None:  # else it has died
            member.answer(self._packed)


def gradients_of(message: Message) -> list[Any]:
    """Return a pushed part's gradients, None where there is none."""
    rest, missing = iter(message.tensors), set(message.facts["missing"])
    return [None if place in missing else next(rest) for place in range(len(missing) + len(message.tensors))]
