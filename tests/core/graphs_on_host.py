"""torch.cuda's streams, events and graphs on a CPU: what a GPU would do to the same tensors, without one.

A recording keeps every operator that torch dispatches, with its arguments, and puts back what they wrote: like a GPU's,
it leaves no trace. A replay runs the operators alone, on the same memory. So whatever Python does in a recorded
function (a list, a seed, a new tensor in an old one's place) has no effect on replays, and a test of them can fail.

What it cannot show: that a graph reads memory which was given back since. The tape holds on to every tensor, a GPU's
graph to none; test_on_gpu.py records with torch's own check for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"_local_scalar_dense", "nonzero", "equal"}


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """Keeps the operators that run within it, and the memory they found as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # by address: a tensor and a copy of its memory
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READS:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for tensor in given:
            if memory(tensor) not in self.made | self.before.keys():
                whole = tensor.untyped_storage()
                self.before[memory(tensor)] = tensor, torch.tensor([], dtype=torch.uint8).set_(whole).clone()
        result = func(*args, **(kwargs or {}))
        known = {memory(tensor) for tensor in given}
        fresh = [r for r in tree_leaves(result) if isinstance(r, Tensor) and memory(r) not in known]
        self.made |= {memory(tensor) for tensor in fresh}
        self.operators.append((func, args, kwargs or {}, result))
        return result

    def put_back(self) -> None:
        for tensor, content in self.before.values():
            torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).copy_(content)


class HostGraph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self, host: Host) -> None:
        self.host, self.tape = host, Tape()
        self.seeds: list[int] = []  # of torch's generator, at each replay

    def replay(self) -> None:
        self.seeds.append(torch.initial_seed())
        with torch._C._AutoDispatchBelowAutograd():  # where they were recorded
            for graph in self.host.graphs:
                graph.spoil()
            for func, args, kwargs, kept in self.tape.operators:
                result = func(*args, **kwargs)
                for old, new in zip(tree_leaves(kept), tree_leaves(result), strict=True):
                    if isinstance(old, Tensor) and memory(old) != memory(new):
                        old.copy_(new)

    def spoil(self) -> None:
        """Overwrite what the graph made, as a graph that shares its memory may."""
        for *_, kept in self.tape.operators:
            for tensor in tree_leaves(kept):
                if isinstance(tensor, Tensor) and memory(tensor) in self.tape.made:
                    tensor.fill_(True if tensor.dtype == torch.bool else 77)


class Host:
    """What the stand-ins share: the current stream of each thread, the order of events, and every graph."""

    def __init__(self) -> None:
        self.default = Stream(self, "default")
        self.log: list[tuple[str, ...]] = []
        self.graphs: list[HostGraph] = []
        self.pools: list[object] = []
        self.before_waiting: Callable[[Event], None] = lambda event: None
        self._current = threading.local()
        self._streams = 0

    @property
    def current(self) -> Stream:
        return getattr(self._current, "stream", self.default)

    def new_stream(self, device: Any = None) -> Stream:
        self._streams += 1
        return Stream(self, f"side {self._streams}")

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._current.stream = self.current, stream
        try:
            yield
        finally:
            self._current.stream = before

    def new_graph(self) -> HostGraph:
        self.graphs.append(HostGraph(self))
        return self.graphs[-1]

    @contextmanager
    def graph(self, graph: HostGraph, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "loader threads go on copying meanwhile"
        assert stream is not self.default, "torch cannot record its default stream"
        self.pools.append(pool)
        self.log.append(("record", stream.name))
        random = torch.get_rng_state()
        try:
            with self.stream(stream), graph.tape:
                yield
        except RuntimeError as error:
            raise RuntimeError("operation failed due to a previous error during capture") from error
        finally:
            graph.tape.put_back()
            torch.set_rng_state(random)


class Stream:
    """Stands for torch.cuda.Stream; work is done at once, so that only the order of waits is to be seen."""

    def __init__(self, host: Host, name: str) -> None:
        self.host, self.name = host, name

    def wait_stream(self, other: Stream) -> None:
        self.host.log.append(("wait", self.name, other.name))

    def wait_event(self, event: Event) -> None:
        self.host.log.append(("wait", self.name, event.name))

    def record_event(self) -> Event:
        event = Event(self.host)
        event.record(self)
        return event


class Event:
    """Stands for torch.cuda.Event; ``Host.before_waiting`` is called when the host waits for one."""

    def __init__(self, host: Host, blocking: bool = False) -> None:
        self.host, self.blocking, self.name = host, blocking, "not recorded"

    def record(self, stream: Stream) -> None:
        self.name = f"event {sum(entry[0] == 'event' for entry in self.host.log) + 1} of {stream.name}"
        self.host.log.append(("event", self.name))

    def synchronize(self) -> None:
        self.host.before_waiting(self)
        self.host.log.append(("host waits", self.name))


def install(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Put the stand-ins in the place of torch.cuda's."""
    host = Host()
    monkeypatch.setattr(torch.cuda, "Stream", host.new_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: host.current)
    monkeypatch.setattr(torch.cuda, "stream", host.stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking=False: Event(host, blocking))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", host.new_graph)
    monkeypatch.setattr(torch.cuda, "graph", host.graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return host
