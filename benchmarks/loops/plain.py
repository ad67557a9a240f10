"""The loop as one writes it by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from . import LR, MOMENTUM, Work


def plain(work: Work, fused: bool = True) -> tuple[float, nn.Module]:
    """Train with the least code; the only number kept is a running loss."""
    network, feed = work.fresh(), work.feed()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, fused=fused or None)
    total = torch.zeros((), device=work.device)
    for images, targets in feed:
        optimizer.zero_grad()
        loss = cross_entropy(network(images), targets)
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return feed.seconds, network


def with_accuracy(work: Work) -> tuple[float, nn.Module]:
    """Train likewise, and keep what the engine keeps: the sums of losses, of right answers and of samples."""
    network, feed = work.fresh(), work.feed()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
    sums: Any = torch.zeros(2, device=work.device)
    samples = 0
    for images, targets in feed:
        optimizer.zero_grad()
        outputs = network(images)
        loss = cross_entropy(outputs, targets)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            sums[0] += loss * len(targets)
            sums[1] += (outputs.argmax(1) == targets).sum()
        samples += len(targets)
    return feed.seconds, network


WARM_UP = 3  # steps made as usual before the recording, as torch's notes on CUDA graphs do


def graphed(work: Work) -> tuple[float, nn.Module]:
    """Train likewise, with the least code that records the step as a CUDA graph and replays it."""
    network, feed = work.fresh(), work.feed()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
    total = torch.zeros((), device=work.device)
    images, targets = (torch.empty_like(tensor) for tensor in work.batches[0])

    def step() -> None:
        optimizer.zero_grad()
        loss = cross_entropy(network(images), targets)
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    for number, batch in enumerate(feed):
        images.copy_(batch[0])
        targets.copy_(batch[1])
        if number < WARM_UP:
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                step()
            current.wait_stream(stream)
            continue
        if number == WARM_UP:
            with torch.cuda.graph(graph, stream=stream):
                step()
        graph.replay()
    return feed.seconds, network
