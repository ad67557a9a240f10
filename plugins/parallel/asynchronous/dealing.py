"""Which step of the run is given to which worker: each is done once, whoever comes, goes or is slow."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from engine.loader import Loader, Position, Step


class Dealer:
    """Deals out the steps ``first`` to ``length`` - 1 in ascending order, those that came back before others."""

    def __init__(self, length: int, first: int = 0, beyond: Iterable[int] = ()) -> None:
        self._length = length
        self._low = first  # all steps before are done
        self._beyond = set(beyond)  # done, though one before them is not
        self._next = first
        self._back: list[int] = []  # a heap of steps that were dealt out and not done
        self._with: dict[int, Hashable] = {}  # worker by step

    def deal(self, worker: Hashable) -> int | None:
        """Return a step for a worker; None if all are done or with others, which may yet come back."""
        if self._back:
            step = heapq.heappop(self._back)
        else:
            found = next(self._undealt(), None)
            if found is None:
                return None
            step, self._next = found, found + 1
        self._with[step] = worker
        return step

    def has_steps(self) -> bool:
        """Return whether ``deal`` would return one."""
        return bool(self._back) or next(self._undealt(), None) is not None

    def _undealt(self) -> Iterator[int]:
        begin = max(self._next, self._low)  # a resumed run has done steps beyond the first that it deals out
        return (step for step in range(begin, self._length) if step not in self._beyond)

    def done(self, step: int) -> None:
        """Take note that a step is done."""
        self._with.pop(step, None)
        self._beyond.add(step)
        while self._low in self._beyond:
            self._beyond.remove(self._low)
            self._low += 1

    def take_back(self, steps: Iterable[int]) -> None:
        """Deal out again steps that were not done."""
        for step in steps:
            if self._with.pop(step, None) is not None:
                heapq.heappush(self._back, step)

    def held_by(self, worker: Hashable) -> list[int]:
        """Return the steps that a worker was dealt and has not done."""
        return [step for step, holder in self._with.items() if holder == worker]

    def state(self) -> dict[str, Any]:
        """Return what is done, of JSON's kinds; what is dealt out is not done."""
        return {"low": self._low, "beyond": sorted(self._beyond)}


def nth(loader: Loader, first: Position, steps: int) -> Position:
    """Return where the step begins that comes ``steps`` after the one at ``first``."""
    length, sample = len(loader.source), first.sample
    left = length - sample % length
    if left < loader.count:  # the rest of the epoch does not fill a step
        sample, left = sample + left, length
    within, steps_within = steps, left // loader.count
    if steps >= steps_within:
        epochs, within = divmod(steps - steps_within, loader.steps_per_epoch)
        sample += left + epochs * length
    return Position(first.step + steps, sample + within * loader.count, first.stage)


def counted(loader: Loader, first: Position, made: int) -> Step:
    """Return the run's step after so many since ``first``, without batches.

    Where a run is follows from how many steps it has made, whatever their order was.
    """
    start, length = nth(loader, first, made), len(loader.source)
    epoch, offset = divmod(start.sample, length)
    ends = offset + 2 * loader.count > length
    end = Position(start.step + 1, start.sample + loader.count, start.stage)
    return Step((), loader.count, epoch, epoch + 1 if ends else None, end)
