"""The parameter server: the run's own process, each of whose steps takes up a step that a worker has made."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import Batch
from engine.interfaces import Precision
from engine.loader import Loader, Position, Step

from .agreeing import difference, facts_of
from .applying import Applying
from .dealing import Dealer, counted, nth
from .figures import Figures
from .links import Message, Packed, pack
from .listening import FINISH, Event, Listening, Member
from .rules import Made, Push, Rules, push_of
from .trace import Trace
from .waking import waking
from .words import say

SIGNAL = Event()


class ParameterServer(Applying):
    """Waits for workers at an address, deals out the run's steps to them, and takes up what they push, in order.

    trace: file for the order. All of it happens in the training thread, so that workers wait while the server
    evaluates or saves; those that have fetched weights before go on with them.
    """

    def __init__(self, rules: Rules, address: tuple[str, int], interface: str, timeout: float, trace: str) -> None:
        super().__init__(rules)
        self._address, self._interface, self._timeout = address, interface, timeout
        self._trace_path = trace
        self._trace: Trace | None = None
        self._resumed: dict[str, Any] = {}
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._members: dict[int, Member] = {}  # by slot
        self._idle: list[Member] = []  # those that wait for a step to come back
        self._held: list[tuple[Member, bool]] = []  # those that may be too far ahead, and whether they want weights
        self._figures = Figures()
        self._dealer = Dealer(0)
        self._loader: Loader | None = None
        self._first, self._made = Position(), 0
        self._push: tuple[Push, Member, bool] | None = None  # being taken up, whose it is, whether it wants weights
        self._place = 0  # of the present step in it
        self._packed: tuple[int, Packed] | None = None  # the weights, by version
        self._weights: tuple[int, list[Tensor]] | None = None
        self._shown = False  # whether observers have been shown images
        self._abandoned = False  # whether another process is to take the run up, for which workers wait

    def steps(self, loader: Loader, position: Position) -> Generator[Step]:
        """Yield a step, without batches, for each that a worker has made; the first call opens the port."""
        self._begin(loader, position)
        listening = Listening(*self._address, self._interface, self._timeout, self._events.put)
        say(f"waiting for workers at {listening.place}")
        try:
            with waking(lambda: self._events.put(SIGNAL)):
                while (push := self._next_push()) is not None:
                    for self._place, taken in enumerate(push.steps):
                        start = Position(taken.step, taken.sample)
                        yield replace(counted(loader, self._first, self._made), start=start)
                        self._made += 1
        finally:
            if not self._abandoned:
                listening.close()
            if self._trace is not None:
                self._trace.close()

    def _begin(self, loader: Loader, position: Position) -> None:
        self._loader = loader
        self._facts = facts_of(self.model, loader, self.key)
        saved = self._resumed
        if saved and saved["samples"] == loader.count:
            self._first = Position(*saved["first"])
            self._dealer = Dealer(self.length, saved["dealt"]["low"], saved["dealt"]["beyond"])
        else:
            self._first, self._dealer = position, Dealer(self.length, position.step)
        self._made = position.step - self._first.step
        if self._trace_path and not self.rules.averages:
            facts = {"rules": self.rules.facts(), "steps": self.length, "samples": loader.count, "key": self.key.value}
            self._trace = Trace(Path(self._trace_path), facts, saved.get("trace"))

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Return the loss of a worker's step; with the last one of a push, put its gradients in place."""
        push = self._pushed[0]
        total: Tensor | None = None
        with torch.no_grad():
            for index, (batch, made) in enumerate(self._batches(push)):
                answer = made.outputs[0] if made.single else made.outputs
                loss = loss_of(batch, index, lambda answer=answer: answer)
                total = loss if total is None else total + loss
        assert total is not None, "a step has at least one micro-batch"
        if self._is_last(push):
            self.take(push)
            total = total * float("nan") if push.bad else total
        return total

    def _batches(self, push: Push) -> list[tuple[Batch, Made]]:
        """Return a step's micro-batches, without images but for the first step, which observers may want to show."""
        taken, device = push.steps[self._place], self.trained[0].device
        pictures: list[Tensor] = []
        if not self._shown:
            self._shown = True
            pictures = [b.images for b in self._reads.step_at(Position(taken.step, taken.sample)).batches]
        found = []
        for index, made in enumerate(push.losses[self._place]):
            none = torch.empty((0, *self._reads.source.shape), device=device)
            outputs = [output.to(device) for output in made.outputs]
            batch = Batch(pictures[index] if pictures else none, made.targets.to(device), made.samples)
            found.append((batch, Made(outputs, made.targets, made.samples, made.single)))
        return found

    @property
    def _reads(self) -> Loader:
        assert self._loader is not None, "``steps`` comes first"
        return self._loader

    @property
    def _pushed(self) -> tuple[Push, Member, bool]:
        assert self._push is not None, "steps come before what is done with them"
        return self._push

    def _is_last(self, push: Push) -> bool:
        return self._place == len(push.steps) - 1

    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply a push with its last step; then its worker is answered."""
        push, member, fetches = self._pushed
        super().update(precision, optimizer, bad)
        self._dealer.done(push.steps[self._place].step)
        if not self._is_last(push):
            return
        staleness = push.staleness(self.version - 1)
        self._figures.applied(push.worker, staleness, self.rules.rate(staleness), len(push.steps))
        if self._trace is not None:
            self._trace.add(self.version - 1, push)
        member.pushes += 1
        if not self.rules.averages:
            if fetches or self._waits:
                self._held.append((member, fetches))
        elif bool(bad):
            self._give_weights(member)
        else:
            moved = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.trained]
            member.answer(pack(Message("moved", {"version": self.version}, moved)))
        self._release()

    @property
    def _waits(self) -> bool:
        return self.rules.beyond == "wait" and self.rules.max_staleness is not None

    # What workers ask.

    def _next_push(self) -> Push | None:
        """Answer workers until one of them has pushed what is to be applied; None if a signal has come."""
        while True:
            begun = time.perf_counter()
            event = self._next_event()
            self._figures.waited(time.perf_counter() - begun)
            if event.member is None:
                return None
            if event.message is None:
                self._lose(event.member, event.lost)
            elif (push := self._answer(event.member, event.message)) is not None:
                return push

    def _next_event(self) -> Event:
        return self._events.get()

    def _answer(self, member: Member, message: Message) -> Push | None:
        match message.kind:
            case "join":
                self._join(member, message)
            case "ask":
                self._idle.append(member)
                self._wake()
            case "deal":
                member.answer(self._deal(member))
            case "fetch":
                self._give_weights(member)
            case "push":
                return self._receive(member, message)
            case "leave":
                member.answer(FINISH)
                self._forget(member)
                say(f"worker {member.slot} ({member.name}) has left; {self._present()}")
        return None

    def _join(self, member: Member, message: Message) -> None:
        member.name = message.facts["name"]
        if differs := difference(self._facts, message.facts["facts"]):
            member.answer(Message("refuse", {"text": differs}))
            return
        member.slot = next(slot for slot in range(len(self._members) + 1) if slot not in self._members)
        self._members[member.slot] = member
        member.pushes = min((other.pushes for other in self._members.values() if other is not member), default=0)
        self._figures.joins += 1
        self._note_weights(member)
        member.answer(pack(self._welcome(member)))
        say(f"worker {member.slot} ({member.name}) has joined; {self._present()}")

    def _welcome(self, member: Member) -> Message:
        facts = {"rules": self.rules.facts(), "version": self.version, "shards": []}
        return Message("joined", facts, [*self.model.parameters(), *self.buffers])

    def _present(self) -> str:
        count = len(self._members)
        return f"{count} worker{'s' * (count != 1)} at step {self._first.step + self._made}"

    def _deal(self, member: Member) -> Message:
        step = self._dealer.deal(member)
        if step is None:
            return Message("none")
        sample = nth(self._reads, self._first, step - self._first.step).sample
        return Message("step", {"step": step, "sample": sample})

    def _receive(self, member: Member, message: Message) -> Push | None:
        """Return a push that is to be applied; drop one that is too stale, whose steps are dealt out again."""
        push = push_of(member.slot, message.facts, list(message.tensors))
        if self.rules.drops(push.staleness(self.version)):
            self._figures.dropped()
            self._dealer.take_back(taken.step for taken in push.steps)
            self._give_weights(member)
            self._wake()
            return None
        fetches = bool(message.facts["fetch"])
        if not fetches and not self.rules.averages and not self._waits:
            member.answer(Message("taken"))
        push.then = member.weights
        self._push = push, member, fetches
        return push

    def _give_weights(self, member: Member) -> None:
        if self._packed is None or self._packed[0] != self.version:
            message = Message("weights", {"version": self.version}, [*self.kept, *self.buffers])
            self._packed = self.version, pack(message)
        self._note_weights(member)
        member.answer(self._packed[1])

    def _note_weights(self, member: Member) -> None:
        """Remember which weights a worker gets, where its gradients are compared with them."""
        if self.rules.compensation:
            if self._weights is None or self._weights[0] != self.version:
                self._weights = self.version, [parameter.detach().clone() for parameter in self.trained]
            member.weights = self._weights[1]

    def _release(self) -> None:
        """Answer those that have pushed and were held because they are ahead, as far as they are not any more."""
        held = self._held
        self._held = [(member, fetches) for member, fetches in held if self._is_ahead(member)]
        for member, fetches in held:
            if not self._is_held(member):
                self._give_weights(member) if fetches else member.answer(Message("taken"))

    def _is_held(self, member: Member) -> bool:
        return any(other is member for other, _ in self._held)

    def _is_ahead(self, member: Member) -> bool:
        """Return whether a worker is to wait for the slowest that is at work (stale synchronous, Ho et al. 2013)."""
        if not self._waits:
            return False
        assert self.rules.max_staleness is not None
        at_work = [m.pushes for m in self._members.values() if not self._is_held(m) and m not in self._idle]
        return member.pushes > min(at_work, default=member.pushes) + self.rules.max_staleness

    def _wake(self) -> None:
        """Let workers that wait for steps go on, if there are any again; those held may have nobody to wait for."""
        while self._idle and self._dealer.has_steps():
            self._idle.pop().answer(Message("go"))
        self._release()

    def _lose(self, member: Member, reason: str) -> None:
        if member.slot < 0 or self._members.get(member.slot) is not member:
            return  # it had not joined, or has left
        self._forget(member)
        self._figures.deaths += 1
        say(f"worker {member.slot} ({member.name}) is lost ({reason}); {self._present()}")

    def _forget(self, member: Member) -> None:
        self._members.pop(member.slot)
        self._idle = [other for other in self._idle if other is not member]
        self._held = [(other, fetches) for other, fetches in self._held if other is not member]
        self._dealer.take_back(self._dealer.held_by(member))
        self._wake()

    # What the loop asks.

    def state(self) -> dict[str, Any]:
        """Return version, which steps are done, and how far the trace belongs to them."""
        if self._loader is None:  # nothing was done since
            return self._resumed
        return {
            "version": self.version,
            "first": [self._first.step, self._first.sample, self._first.stage],
            "samples": self._reads.count,
            "dealt": self._dealer.state(),
            "trace": self._trace.size() if self._trace is not None else None,
            "joins": self._figures.joins,
            "deaths": self._figures.deaths,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned; workers join anew."""
        if state:
            self._resumed, self.version = state, state["version"]
            self._figures.joins, self._figures.deaths = state["joins"], state["deaths"]

    def describe(self) -> str:
        """Return in a line what the server does."""
        return self.rules.words()

    def telemetry(self) -> dict[str, Tensor]:
        """Return staleness, workers' rates, joins and deaths."""
        return self._figures.read(sorted(self._members), self.trained[0].device)
