"""Augmentations one after the other, adjacent ones as a single pass where one can do them.

A chain carries images through its augmentations. What becomes of a sample is a function of the key, the sample's number
and its record, whatever else is in the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import UsageError
from engine.host_to_device import Layout
from engine.interfaces import Augmentation
from engine.pictures import Pictures
from engine.plan import Plan
from engine.randomness import Key
from engine.resampling import Resampling

DIRECT = (torch.float32, torch.bfloat16)  # what a pass writes, besides bytes
Images = Pictures | Tensor
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Samples:
    """The samples of a batch: their numbers in the stream and their records, int64 [n], all of one epoch."""

    numbers: Tensor
    records: Tensor
    epoch: int


@dataclass(frozen=True)
class Link:
    """An augmentation with its name; without a key it does what an evaluation wants, which draws nothing."""

    name: str
    op: Augmentation
    key: Key | None

    def draw(self, plan: Plan, samples: Samples) -> Any:
        """Return what is drawn for images as a plan leaves them."""
        if self.key is None:
            return None
        if isinstance(self.op, Resampling):
            return self.op.draw_windows(self.key, samples.numbers, plan.sizes)
        if plan.shape is None:
            raise UsageError(sizes_differ(self.name))
        if self.op.by_record:
            return self.op.draw_by_record(self.key, samples.records, samples.epoch, plan.shape)
        return self.op.draw(self.key, samples.numbers, plan.shape)

    def fuse(self, plan: Plan, parameters: Any) -> bool:
        """Add the augmentation to a pass, if it can be."""
        return self.op.fuse_test(plan) if self.key is None else self.op.fuse(plan, parameters)

    def apply(self, images: Tensor, targets: Tensor, parameters: Any) -> tuple[Tensor, Tensor]:
        """Return what the augmentation makes of a batch."""
        if self.key is None:
            return self.op.test(images), targets
        return self.op.apply(images, targets, parameters)


def links_of(augmentations: Mapping[str, Augmentation], key: Key | None) -> list[Link]:
    """Return augmentations in their order, each with a key of its own, which its name alone decides."""
    return [Link(name, op, key.at("augment", name) if key else None) for name, op in augmentations.items()]


class Chain(ABC):
    """Carries batches through augmentations; any thread may ask."""

    def __init__(self, links: Sequence[Link], layout: Layout) -> None:
        self.links, self.layout = list(links), layout

    def run(self, images: Images, targets: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """Return images [n, c, h, w] and targets after all augmentations."""
        pending = list(self.links)
        while pending or isinstance(images, Pictures):
            if self.passes(images):
                images, done, parameters = self._passed(images, pending, samples)
            else:
                assert isinstance(images, Tensor), "every pass reads pictures"
                done, parameters = 0, pending[0].draw(_as_it_is(images), samples)
            pending = pending[done:]
            if pending and not done:
                images, targets = pending.pop(0).apply(images, targets, parameters)
        return images, targets

    @abstractmethod
    def passes(self, images: Images) -> bool:
        """Return whether a pass can read such images."""

    @abstractmethod
    def carry_out(self, plan: Plan, images: Images, samples: Samples, dtype: torch.dtype, last: bool) -> Tensor:
        """Return images after a pass, in ``dtype``, and in the layout's memory order if they are the ``last``."""

    def begin(self, plan: Plan, images: Images, link: Link | None) -> None:
        """Add to a pass over images what comes before the next augmentation. Default: nothing."""
        return None

    def _passed(self, images: Images, pending: Sequence[Link], samples: Samples) -> tuple[Tensor, int, Any]:
        """Return images after as many augmentations as one pass can do, their number, and what the next one drew."""
        plan = Plan(images.channels, images.sizes) if isinstance(images, Pictures) else _as_it_is(images)
        self.begin(plan, images, pending[0] if pending else None)
        done, parameters = 0, None
        for link in pending:
            parameters = link.draw(plan, samples)
            if not link.fuse(plan, parameters):
                break
            done += 1
        if plan.shape is None:
            raise UsageError(sizes_differ(pending[done].name if done < len(pending) else ""))
        if isinstance(images, Tensor) and plan.empty:
            return images, done, parameters
        last = done == len(pending)
        dtype = torch.uint8
        if plan.kinds:
            dtype = self.layout.dtype if last and self.layout.dtype in DIRECT else torch.float32
        return self.carry_out(plan, images, samples, dtype, last), done, parameters


def sizes_differ(name: str) -> str:
    """Return the message for images that reach an augmentation, or the network, in different sizes."""
    where = f"where augment.{name} needs them all of one" if name else "when they reach the network"
    return (
        f"augment: images are of different sizes {where}; put random_crop, center_crop, random_resized_crop or another "
        "that gives all one size before"
    )


def _as_it_is(images: Tensor) -> Plan:
    return Plan(images.shape[1], torch.tensor(images.shape[2:]).expand(len(images), 2).clone())
