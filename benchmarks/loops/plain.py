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
    total = torch.zeros(())
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
    sums: Any = torch.zeros(2)
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
