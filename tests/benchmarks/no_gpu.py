"""A GPU that is not there: what the benchmarks use of ``torch.cuda``, with a clock that is told the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch


class Gpu:
    """Streams, events and graphs of a GPU that is not there. Its time is what ``work`` adds, or the host's.

    A function that is captured is called, as torch does, but its work is done at every replay instead.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float] | None = None) -> None:
        self.now, self.done, self.into = 0.0, [], None
        self.clock = clock or (lambda: self.now)
        self.streams = [SimpleNamespace(name="default", wait_stream=lambda other: None)]
        for name in ("Stream", "stream", "Event", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.streams[-1])
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.done.append("synchronised"))

    def Stream(self) -> SimpleNamespace:  # noqa: N802 - torch's name
        return SimpleNamespace(name="side", wait_stream=lambda other: self.done.append(f"side waits for {other.name}"))

    @contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        self.streams.append(stream)
        yield
        self.streams.pop()

    def Event(self, enable_timing: bool) -> SimpleNamespace:  # noqa: N802
        assert enable_timing
        event = SimpleNamespace(at=None, synchronize=lambda: self.done.append("waited"))
        event.record = lambda: setattr(event, "at", self.clock())
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event

    def CUDAGraph(self) -> SimpleNamespace:  # noqa: N802
        graph = SimpleNamespace(seconds=0.0)

        def run() -> None:
            self.done.append("replayed")
            self.now += graph.seconds

        graph.replay = run
        return graph

    @contextmanager
    def graph(self, graph: SimpleNamespace, stream: SimpleNamespace) -> Iterator[None]:
        self.into = graph
        with self.stream(stream):
            yield
        self.into = None

    def work(self, name: str, seconds: float) -> Callable[[], torch.Tensor]:
        """Return a function that takes the GPU so long."""

        def call() -> torch.Tensor:
            self.done.append(f"{name} on {self.streams[-1].name}{'' if self.into is None else ', captured'}")
            if self.into is None:
                self.now += seconds
            else:
                self.into.seconds += seconds
            return torch.zeros(1)

        return call
