"""The collectives that strategies use: counted, watched, and the identity where a process is alone.

Some are made of others: gloo's reduce-scatter sends twice the bytes that are needed, so it is an all-to-all with a sum
in the order of ranks, which also makes it deterministic.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.distributed.store import PatientStore
from engine.distributed.traffic import Traffic
from engine.distributed.watch import KEEPER, Beat, ProcessLost, Watch, first_line

FIRST_POLL, LONGEST_POLL = 0.001, 0.05  # seconds between two looks into the store
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # as torch 2.13 calls it


@dataclass(eq=False)
class Pending:
    """A collective that has begun; ``wait`` returns its result."""

    group: Group
    name: str
    result: Tensor
    work: Any = None

    def wait(self) -> Tensor:
        """Return the result once it is there. Raises ProcessLost naming the process that failed or does not answer."""
        if self.work is not None:
            with self.group.watched(self.name), self.group.traffic.waiting():
                self.work.wait()
            self.work = None
        return self.result


class Group:
    """Processes that exchange tensors, by rank within the group; all call the same methods in the same order.

    ``ranks`` are their ranks in the run. A group of one returns what it is given and sends nothing. Every method
    raises ProcessLost if a process fails or does not answer in time, and names it.
    """

    def __init__(
        self,
        ranks: Sequence[int] = (0,),
        rank: int = 0,
        process_group: Any = None,
        store: dist.Store | None = None,
        watch: Watch | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self.ranks, self.rank, self.world = tuple(ranks), rank, len(ranks)
        self.traffic = traffic or Traffic()
        self.process_group, self.store, self.watch = process_group, store, watch
        self.connection = "one process"  # in words, once they are joined
        self._channel = ""
        self._patient = PatientStore(store, watch.patience) if store and watch else None

    def split(self, groups: Sequence[Sequence[int]]) -> Group:
        """Return this process's group of several, each a list of ranks; all processes name all groups."""
        mine = None
        for ranks in groups:
            handle = dist.new_group([self.ranks[rank] for rank in ranks]) if len(ranks) > 1 else None
            if self.rank in ranks:
                members, place = [self.ranks[rank] for rank in ranks], list(ranks).index(self.rank)
                mine = Group(members, place, handle, self.store, self.watch, self.traffic)
        assert mine is not None, "every process is in one of the groups"
        return mine

    def channel(self, name: str) -> Group:
        """Return the same group for ``exchange`` in another thread, whose exchanges are apart from all others."""
        other = Group(self.ranks, self.rank, self.process_group, self.store, self.watch, self.traffic)
        other._channel = name
        return other

    @contextmanager
    def watched(self, name: str) -> Iterator[None]:
        """Within ``with``, a failure of torch.distributed becomes ProcessLost, which names who is to blame."""
        try:
            yield
        except RuntimeError as error:
            if self.watch is None:
                raise
            raise self.watch.lost(name, first_line(error)) from error

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """As ``watched``, around what may fail for other reasons too: those errors are left as they are."""
        try:
            yield
        except RuntimeError as error:
            if self.watch is None or not of_communication(error):
                raise
            raise self.watch.lost(name, first_line(error)) from error

    def _run(self, name: str, sent: float, result: Tensor, call: Callable[[], Any]) -> Pending:
        """Begin a collective of which this process sends so many bytes."""
        self.traffic.add(name.split(" ")[0], sent)
        if self.watch is not None:
            self.watch.begin(name)
        self.traffic.begin()
        try:
            with self.watched(name):
                pending = Pending(self, name, result, call())
        except BaseException:
            self.traffic.end()
            raise
        pending.work.get_future().add_done_callback(lambda done: self.traffic.end())
        return pending

    def begin_all_reduce(self, values: Tensor, what: str = "", largest: bool = False) -> Pending:
        """Begin to sum ``values`` over all processes, in place (or to take the largest)."""
        if self.world == 1:
            return Pending(self, "all_reduce", values)
        operation = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        sent = 2 * (self.world - 1) / self.world * size_of(values)
        return self._run(
            f"all_reduce {what}".strip(), sent, values,
            lambda: dist.all_reduce(values, operation, group=self.process_group, async_op=True),
        )  # fmt: skip

    def all_reduce(self, values: Tensor, what: str = "", largest: bool = False) -> Tensor:
        """Return ``values`` summed over all processes, in place (or the largest)."""
        return self.begin_all_reduce(values, what, largest).wait()

    def begin_all_gather(self, values: Tensor, what: str = "", out: Tensor | None = None) -> Pending:
        """Begin to collect ``values`` [n, ...] of all processes to [world * n, ...], by rank; in ``out``, if given."""
        if self.world == 1:
            return Pending(self, "all_gather", values)
        values = values.contiguous()
        if out is None:
            out = values.new_empty((self.world * values.shape[0], *values.shape[1:]))
        return self._run(
            f"all_gather {what}".strip(), (self.world - 1) * size_of(values), out,
            lambda: all_gather(out, values, group=self.process_group, async_op=True),
        )  # fmt: skip

    def all_gather(self, values: Tensor, what: str = "") -> Tensor:
        """Return ``values`` [n, ...] of all processes as [world * n, ...], by rank."""
        return self.begin_all_gather(values, what).wait()

    def begin_all_to_all(self, values: Tensor, what: str = "") -> Pending:
        """Begin to give piece r of ``values`` [world * n, ...] to rank r, and to collect theirs in the same shape."""
        if self.world == 1:
            return Pending(self, "all_to_all", values)
        values = values.contiguous()
        out = torch.empty_like(values)
        return self._run(
            f"all_to_all {what}".strip(), (self.world - 1) / self.world * size_of(values), out,
            lambda: dist.all_to_all_single(out, values, group=self.process_group, async_op=True),
        )  # fmt: skip

    def all_to_all(self, values: Tensor, what: str = "") -> Tensor:
        """Return piece ``rank`` of every process's ``values`` [world * n, ...], by rank, in the same shape."""
        return self.begin_all_to_all(values, what).wait()

    def reduce_scatter(self, values: Tensor, what: str = "") -> Tensor:
        """Return piece ``rank`` of ``values`` [world * n, ...] summed over all processes, [n, ...], in rank order."""
        if self.world == 1:
            return values
        pieces = self.begin_all_to_all(values, f"reduce_scatter {what}".strip()).wait()
        return pieces.view(self.world, -1, *values.shape[1:]).sum(0)

    def begin_broadcast(self, values: Tensor, source: int, what: str = "") -> Pending:
        """Begin to give every process the ``values`` of one, in place."""
        if self.world == 1:
            return Pending(self, "broadcast", values)
        sent = (self.world - 1) * size_of(values) if self.rank == source else 0
        return self._run(
            f"broadcast {what}".strip(), sent, values,
            lambda: dist.broadcast(values, self.ranks[source], group=self.process_group, async_op=True),
        )  # fmt: skip

    def broadcast(self, values: Tensor, source: int = 0, what: str = "") -> Tensor:
        """Return the ``values`` of one process in every process, in place."""
        return self.begin_broadcast(values, source, what).wait()

    def exchange(self, value: Any, what: str = "values") -> list[Any]:
        """Return every process's ``value`` (of JSON's kinds), by rank, in each; for the start and the end of things.

        It waits for as long as the others are alive, whatever a collective's time is, and sends no tensor.
        """
        if self.world == 1:
            return [value]
        assert self._patient is not None, "a group of several has one"
        assert self.watch is not None
        members = f"{self._channel}{'-'.join(map(str, self.ranks))}"
        self.watch.exchanged[members] += 1  # of all groups that use the store
        place = f"exchange/{members}/{self.watch.exchanged[members]}"
        self.watch.begin(f"exchange {what}")
        with self.watched(f"exchange {what}"):
            self._patient.set(f"{place}/{self.rank}", json.dumps(value))
            return [self._fetched(f"{place}/{rank}", self.ranks[rank], what) for rank in range(self.world)]

    def _fetched(self, key: str, rank: int, what: str) -> Any:
        """Wait for a key of the store that process ``rank`` sets, as long as it is alive."""
        assert self._patient is not None
        assert self.watch is not None
        beat: Beat | None = None
        look, pause = time.monotonic() + self.watch.patience, FIRST_POLL
        while (told := self._patient.get(key)) is None:
            if (failed := self.watch.failed()) is not None:
                raise ProcessLost(f"rank {self.ranks[self.rank]}: rank {failed} has failed: its message says why")
            if beat is None or time.monotonic() > look:
                alive, beat = self.watch.alive(rank, beat)
                if not alive:
                    raise self.watch.lost(f"exchange {what}", "no answer")
                look = time.monotonic() + self.watch.patience
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL)
        return json.loads(told)

    def leave(self) -> None:
        """Let the others know that this process needs nothing of them any more.

        Rank 0, which keeps the store, waits for all of them.
        """
        if self._patient is None:
            return
        with self.watched("the end"):
            self._patient.set(f"left/{self.rank}", "true")
            for rank in range(self.world) if self.rank == KEEPER else ():
                self._fetched(f"left/{rank}", rank, "the end")


def of_communication(error: RuntimeError) -> bool:
    """Return whether an error of torch is about another process, and not about what is computed here."""
    words = ("gloo", "NCCL", "c10d", "pair closure")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def size_of(values: Tensor) -> int:
    """Return how many bytes a tensor's elements take."""
    return values.numel() * values.element_size()


ALONE = Group()
_current: list[Group] = [ALONE]


def current() -> Group:
    """Return all of the run's processes, or a group of one where nobody has been joined."""
    return _current[-1]


@contextmanager
def entered(group: Group) -> Iterator[Group]:
    """Within ``with``, ``group`` is the current one."""
    _current.append(group)
    try:
        yield group
    finally:
        _current.pop()
