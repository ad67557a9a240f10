"""What belongs to which of several servers, and how a part of weights and optimiser state is handed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine import UsageError
from engine.checkpoint import load_optimizer_state, optimizer_state

from .links import Link, LinkLost, Message, answers
from .listening import join


def divided(sizes: Sequence[int], servers: int) -> list[list[int]]:
    """Return for each server the numbers of its tensors, ascending: whole ones, about as many elements for each.

    The largest goes first, always to the server that has least (Graham 1969): none gets more than 4/3 of the best
    division's largest part. Raises UsageError if there are fewer tensors than servers.
    """
    if servers > len(sizes):
        raise UsageError(
            f"parallel.servers={servers}: the network has {len(sizes)} tensors that train, and each server keeps whole "
            f"ones: give at most {len(sizes)}"
        )
    parts: list[list[int]] = [[] for _ in range(servers)]
    loads = [0] * servers
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        least = min(range(servers), key=lambda server: (loads[server], len(parts[server])))
        parts[least].append(index)
        loads[least] += sizes[index]
    return [sorted(part) for part in parts]


def handed_over(trained: Sequence[Tensor], part: Sequence[int], optimizer: torch.optim.Optimizer) -> Message:
    """Return a message with a part's weights and optimiser state."""
    names = names_of(trained, part, optimizer)
    tensors, numbers = optimizer_state(optimizer)
    tensors = {key: value for key, value in tensors.items() if key.rpartition("/")[0] in names}
    numbers = {key: value for key, value in numbers.items() if key.rpartition("/")[0] in names}
    facts = {"entries": list(tensors), "numbers": numbers}
    return Message("part", facts, [*(trained[index] for index in part), *tensors.values()])


@torch.no_grad()
def take_over(
    trained: Sequence[Tensor], part: Sequence[int], optimizer: torch.optim.Optimizer, message: Message
) -> None:
    """Take up a part's weights and optimiser state, in the memory that it has: an optimiser may keep lists of that."""
    for index, values in zip(part, message.tensors[: len(part)], strict=True):
        trained[index].copy_(values)
    given = dict(zip(message.facts["entries"], message.tensors[len(part) :], strict=True))
    for name, parameter in names_of(trained, part, optimizer).items():
        state = optimizer.state[parameter]
        for entry, before in list(state.items()):
            new = given.get(f"{name}/{entry}")
            if new is None:
                del state[entry]
            elif isinstance(before, Tensor) and (before.shape, before.dtype) == (new.shape, new.dtype):
                before.copy_(given.pop(f"{name}/{entry}"))
    load_optimizer_state(optimizer, given, message.facts["numbers"])


def names_of(trained: Sequence[Tensor], part: Sequence[int], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return a part's tensors by the names that the optimiser has for them."""
    wanted = {id(trained[index]) for index in part}
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if id(parameter) in wanted
    }


def norm_of(parameter: Tensor, gradient: Tensor) -> float:
    """Return a gradient's norm, added up in the order in which the server would that keeps it like its parameter."""
    like = torch.empty_like(parameter).copy_(gradient)
    return torch.linalg.vector_norm(like).item()


@dataclass(frozen=True)
class Shards:
    """A worker's links to the servers beside the one that leads; ``parts`` are theirs, of what trains."""

    links: Sequence[Link] = ()
    parts: Sequence[Sequence[int]] = ()

    @classmethod
    def found(
        cls, addresses: Sequence[Sequence[Any]], parts: Sequence[Sequence[int]], token: str, interface: str, wait: float
    ) -> Shards:
        """Return links to the servers at these addresses, each of which knows the worker by a token.

        Raises LinkLost if one is not there.
        """
        links = []
        for host, port in addresses:
            if not answers(host, port, wait):
                raise LinkLost(f"the server at {host}:{port} is not there")
            links.append(join(host, port, interface, wait))
            links[-1].send(Message("hello", {"token": token}))
        shards = cls(links, parts)
        shards._answers("taken")
        return shards

    def push(self, gradients: Sequence[Tensor | None]) -> None:
        """Give each server its part of all gradients; they have it when this returns."""
        for link, part in zip(self.links, self.parts, strict=True):
            own = [gradients[index] for index in part]
            missing = [place for place, gradient in enumerate(own) if gradient is None]
            link.send(Message("push", {"missing": missing}, [gradient for gradient in own if gradient is not None]))
        self._answers("taken")

    @torch.no_grad()
    def fetch(self, trained: Sequence[Tensor], version: int) -> None:
        """Take up the weights of a version, as the one that leads has ordered the servers to give them."""
        for link in self.links:
            link.send(Message("fetch"))
        for part, answer in zip(self.parts, self._answers("weights"), strict=True):
            if answer.facts["version"] != version:
                raise RuntimeError(f"a server gave version {answer.facts['version']} of its weights, not {version}")
            torch._foreach_copy_([trained[index] for index in part], list(answer.tensors))

    def _answers(self, kind: str) -> list[Message]:
        """Return each server's answer; LinkLost if one has lost the run, and what a link raises."""
        found = []
        for link in self.links:
            answer = link.receive()
            while answer.kind == "wait":
                answer = link.receive()
            if answer.kind != kind:
                raise LinkLost("a server has lost the one that leads" if answer.kind == "lost" else "it has ended")
            found.append(answer)
        return found
