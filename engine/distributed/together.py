"""What strategies have in common whose processes make every step together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from engine.distributed.group import Group, Pending, current
from engine.errors import RunFailed
from engine.interfaces import Precision, Strategy


class Together(Strategy):
    """Answers by collectives what the loop asks, in the processes of ``engine.distributed.current()``.

    A stop request is acted on one step after it was raised, so that nobody waits for the answer. Every
    ``verify_every`` updates the parameters are compared over all processes; 0: never.
    """

    def __init__(self, verify_every: int = 0) -> None:
        self.group: Group = current()
        self.rank, self.world = self.group.rank, self.group.world
        self.leads = self.rank == 0
        self.verify_every = verify_every
        self.replicated: Mapping[str, Tensor] = {}  # what must be the same in every process, by name
        self._asked: Pending | None = None
        self._updates = self._told_at = 0

    def agree(self, bad: Tensor) -> Tensor:
        """Return, in place, 1.0 if any process's ``bad`` is 1.0, else 0.0."""
        return self.group.all_reduce(bad, "flag", largest=True)

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the global norm of gradients that are the same in every process; the host does not wait for it."""
        return get_total_norm([p.grad for p in parameters if p.grad is not None])

    def clip(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        """Scale gradients so that their true global norm is at most ``largest``; return the norm before."""
        norm = self.norm(parameters)
        clip_grads_with_norm_(parameters, largest, norm)
        return norm

    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply the optimiser's step through the precision, unless ``bad`` is 1.0; compare parameters when due."""
        super().update(precision, optimizer, bad)
        self._updates += 1
        if self.verify_every and self._updates % self.verify_every == 0:
            require_same(self.group, self.replicated, self._updates)

    def sum(self, values: Tensor) -> Tensor:
        """Return ``values`` summed over all processes; they are left as they are."""
        return self.group.all_reduce(values.clone(), "sum") if self.group.world > 1 else values

    def share(self, value: Any) -> Any:
        """Return rank 0's ``value`` on every process."""
        return self.gather(value)[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every process's ``value``, by rank."""
        return self.group.exchange(value)

    def any(self, flag: bool) -> bool:
        """Return whether any process raised ``flag`` at the call before this one; alone, now."""
        if self.group.world == 1:
            return flag
        before, self._asked = self._asked, self.group.begin_all_reduce(torch.tensor([float(flag)]), "stop", True)
        return before is not None and bool(before.wait().item())

    def telemetry(self) -> dict[str, Tensor]:
        """Return what this process has sent and waited for, per step; none where it is alone."""
        steps, self._told_at = self._updates - self._told_at, self._updates
        if self.group.world == 1:
            return {}
        return {tag: torch.tensor(value) for tag, value in self.group.traffic.read(steps).items()}

    def describe(self) -> str:
        """Return how many processes there are and how they are connected."""
        return "" if self.group.world == 1 else f"{self.group.world} processes: {self.group.connection}"


def require_same(group: Group, tensors: Mapping[str, Tensor], update: int) -> None:
    """Raise RunFailed, in every process, if one of ``tensors`` differs from rank 0's in any bit; names the first."""
    if group.world == 1 or not tensors:
        return
    own = torch.stack([checksum(tensor) for tensor in tensors.values()])
    everyone = group.all_gather(own[None], "checksums")
    differing = (everyone != everyone[0]).nonzero()
    if len(differing):
        member, place = differing[0].tolist()
        name = list(tensors)[place]
        other, first = group.ranks[member], group.ranks[0]
        raise RunFailed(
            f"parallel: after {update} updates '{name}' of rank {other} is not rank {first}'s in every bit: a machine "
            "or its memory is at fault, or a plugin draws differently in each process; the checkpoints before are whole"
        )


@torch.no_grad()
def checksum(values: Tensor) -> Tensor:
    """Return an int64 scalar that changes with any single bit of ``values``, or where two elements change places."""
    content = values.detach().contiguous().view(torch.uint8).flatten()
    content = torch.cat([content, content.new_zeros(-len(content) % 8)]).view(torch.int64)
    places = torch.arange(1, 2 * len(content), 2, device=content.device)  # odd, so that no bit is lost modulo 2^64
    return (content * places).sum()


def average_(group: Group, tensors: Iterable[Tensor], what: str) -> None:
    """Replace tensors by their means over all processes, in place, in one collective."""
    tensors = list(tensors)
    if group.world == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    group.all_reduce(flat, what).div_(group.world)
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])
