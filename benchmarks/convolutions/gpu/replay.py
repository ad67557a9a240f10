"""The clock of GPUs: what the kernels take, by replaying CUDA graphs, and what a call takes the host, by itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from harness import Side

from ..measuring import Clock

WARM = 3  # calls before a capture
LONG = 2e-3  # seconds that a replay should take at least, so that its own start is nothing beside it
MOST = 100  # calls in a graph
QUEUED = 10  # calls whose time on the host is taken at once; few, so that the GPU's queue never fills


@cache
def capturing_stream() -> torch.cuda.Stream:
    """Return the stream on which everything is captured: libraries keep memory for each stream they have seen."""
    return torch.cuda.Stream()


class Replay:
    """A side: replays a graph that holds some calls of a function, and returns the seconds of one, between events.

    The function is called WARM times first, on the stream on which it is then captured: cuDNN tries its algorithms,
    and libraries set themselves up, which cannot be captured. What a call allocates is the graph's own memory; its
    result is freed before the next call, which takes the same memory again, as calls outside of a graph do.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        stream = capturing_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                function()
            self.calls = min(MOST, max(1, math.ceil(LONG / between_events(function))))
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            for _ in range(self.calls):
                function()

    def __call__(self) -> float:
        """Return the seconds of one call in a replay."""
        self._graph.replay()  # untimed: the GPU is busy, and warm, while the host queues the one that is timed
        return between_events(self._graph.replay) / self.calls


def between_events(function: Callable[[], Any]) -> float:
    """Return the seconds from the GPU's beginning to its end of what a function queues on the current stream."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def queueing(function: Callable[[], Any], calls: int = QUEUED) -> Side:
    """Return the side that returns the seconds after which the host may go on: Python, checks, memory, launches.

    The GPU has nothing else to do and nobody waits for it; where a function waits itself, that is in the time.
    """

    def turn() -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - begun) / calls

    return turn


GRAPHS = Clock("cuda", Replay, queueing)
