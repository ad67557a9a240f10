"""Schemes b and c: the trunk for a process's own rows, then the head for some of everybody's at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine import Batch, Key, UsageError
from engine.randomness import seed_torch

from .choosing import split_layers
from .layers import computed_in
from .layouts import BATCH
from .passes import Turn, begin_return, cut, gathered, part_of, require_no_statistics, turns
from .placing import Placed


@dataclass(frozen=True)
class Calls:
    """What a head calls: for a loss, for a forward pass's context, before a pass (True: the last) and after it."""

    loss_of: Callable[..., Tensor]
    computing: Callable[[Tensor], AbstractContextManager[Any]]
    before: Callable[[bool], None]
    after: Callable[[Turn], None]


class Head:
    """A model cut before its first split layer. ``trunk`` and the head are made of the model's own modules.

    Raises UsageError for a model that cannot be cut there, or cannot run on so few rows at a time.
    """

    def __init__(self, model: nn.Module, scheme: str, placed: Placed) -> None:
        self.trunk, self._head = cut(model, placed.first, scheme)
        self._model, self._scheme, self._placed = model, scheme, placed
        if scheme == "b":
            require_no_statistics(self._head)
            self._require_one_chain()

    def _require_one_chain(self) -> None:
        split = split_layers(self._placed.choices)
        again = [choice.name for choice in split[1:] if choice.before == BATCH]
        if again:
            raise UsageError(
                f"parallel.scheme=b: '{again[0]}' does not follow the split layer before it at once, so that its rows "
                "would be with one process: choose c or d"
            )

    def require_uncompiled(self) -> None:
        """Raise UsageError for a model that is to be compiled as a whole, which is never called as one."""
        if self._model._compiled_call_impl is not None:
            raise UsageError(
                f"run.compile=true compiles a network that runs as a whole; parallel.scheme={self._scheme} runs it in "
                "parts: choose parallel.scheme=d or a"
            )

    def run(self, trunk: nn.Module, batch: Batch, number: int, weight: Tensor, key: Key, calls: Calls) -> Tensor:
        """Run a micro-batch forward and backward; return this process's summed loss. Its passes count from ``number``.

        trunk: the network's trunk, perhaps wrapped.
        """
        group, now = self._placed.group, self._placed.now
        seed_torch(key.at("trunk", int(batch.samples[0])), batch.images.device)
        with calls.computing(batch.samples):
            made = trunk(batch.images)
            self._require_rows(made)
            sent = made.detach().to(computed_in(made))
        everybody = None if now.everybody is None else now.everybody.view(group.world, -1)
        schedule = turns(self._scheme, group, len(batch))
        total, returned = weight.new_zeros(()), []
        now.gathered = True
        for place, (turn, rows) in enumerate(gathered(group, sent, schedule)):
            calls.before(place == len(schedule) - 1)
            own, now.owner = part_of(batch, turn.rows), turn.owner
            if everybody is not None:
                now.own = own.samples
                now.everybody = everybody[:, turn.rows].flatten() if turn.owner is None else everybody[turn.owner]
            rows = rows.detach().requires_grad_(made.requires_grad)
            total += self._pass(rows, own, number + place, weight, calls)
            if rows.grad is not None:
                returned.append(begin_return(group, rows.grad, turn))
            calls.after(turn)
        now.gathered, now.owner = False, None
        if made.requires_grad:
            made.backward(torch.cat([wait() for wait in returned]).to(made.dtype))
        return total

    def _pass(self, rows: Tensor, own: Batch, number: int, weight: Tensor, calls: Calls) -> Tensor:
        """Run some rows through the head, forward and backward; return the loss of own ones."""
        if len(own):
            loss = calls.loss_of(own, number, lambda: self._head(rows))
            torch.autograd.backward(loss, weight)
            return loss.detach()
        with calls.computing(own.samples):  # no sample's loss is made here, but all take part in the others'
            made = self._head(rows)
        heads = list(made) if isinstance(made, list | tuple) else [made]
        torch.autograd.backward(heads, [torch.zeros_like(head) for head in heads])
        return weight.new_zeros(())

    def _require_rows(self, made: Tensor) -> None:
        if made.ndim != 2:
            raise UsageError(
                f"parallel.scheme={self._scheme}: '{self._placed.first}' reads {list(made.shape)}, not a row for each "
                "sample: choose parallel.scheme=d or a"
            )
