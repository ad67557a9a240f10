"""Boxes that are overwritten: cutout (DeVries and Taylor 2017) and random erasing (Zhong et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import Key, UsageError, uniform
from engine.interfaces import Augmentation
from engine.plan import Plan
from engine.plan_on_tensors import inside

from .draws import below, between, checked, log_between
from .noise import Seeds
from .passes import on_tensors, unit_floats

TRIES = 10


class CuttingOut(Augmentation):
    """Sets a square to 0, its centre equally likely to be any pixel, so that a part of it may lie outside.

    0 is black, or after a normalisation the mean.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Return int64 [n, 4]: the squares, (top, left, bottom, right), not clipped to the image."""
        starts = below(uniform(key, samples, 2), shape[1:]) - self.size // 2
        return torch.cat([starts, starts + self.size], 1)

    def apply(self, images: Tensor, targets: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Set the squares."""
        return on_tensors(images, lambda plan: self.fuse(plan, parameters)), targets

    def fuse(self, plan: Plan, parameters: Tensor) -> bool:
        """Set them in a pass."""
        return plan.erase(parameters, torch.zeros(1, plan.channels))


@dataclass
class Erasure:
    """The rectangles of a batch, int64 [n, 4], (top, left, bottom, right), empty where there is none; and noise."""

    boxes: Tensor
    seeds: Seeds


class RandomRectangle(Augmentation):
    """Sets a rectangle to ``value``, or to noise, as torchvision's RandomErasing.

    A try draws the area uniformly and the ratio of its sides with a uniform logarithm; the first of ten that is smaller
    than the image both ways counts, and if none is, nothing is erased.
    """

    def __init__(
        self,
        probability: float,
        scale: Sequence[float],
        ratio: Sequence[float],
        value: Sequence[float],
        random: bool,
    ) -> None:
        self.probability, self.random = probability, random
        self.scale = checked("random_erasing.scale", scale, 0, 1)
        self.ratio = checked("random_erasing.ratio", ratio, 1e-6, float("inf"))
        self.value = torch.tensor(value, dtype=torch.float32)
        if random and bool((self.value != 0).any()):
            raise UsageError("augment.random_erasing: value has no meaning with random=true; give one of them")

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Erasure:
        """Return rectangles. Raises UsageError if there is not one value for each channel."""
        if len(self.value) not in (1, shape[0]):
            raise UsageError(
                f"augment.random_erasing.value has {len(self.value)} numbers, but the images have {shape[0]} channels: "
                "give one, or one per channel"
            )
        numbers = uniform(key, samples, 2 * TRIES + 3)
        sides = torch.tensor(shape[1:])
        areas = between(numbers[:, :TRIES], *self.scale) * float(shape[1] * shape[2])
        ratios = log_between(numbers[:, TRIES : 2 * TRIES], *self.ratio)
        extents = torch.stack([(areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()], 2).long()
        fits = (extents < sides).all(2)
        extents = extents[torch.arange(len(samples)), fits.int().argmax(1)]
        erased = fits.any(1) & (numbers[:, -1] < self.probability)
        extents = torch.where(erased[:, None], extents, 0)
        starts = below(numbers[:, -3:-1], sides - extents + 1)
        return Erasure(torch.cat([starts, starts + extents], 1), Seeds(key.at("noise"), samples.clone()))

    def apply(self, images: Tensor, targets: Tensor, parameters: Erasure) -> tuple[Tensor, Tensor]:
        """Set the rectangles; noise makes float32 of uint8."""
        if not self.random:
            return on_tensors(images, lambda plan: self.fuse(plan, parameters)), targets
        images = unit_floats(images)
        noise = parameters.seeds.normal(tuple(images.shape[1:]), images.device).to(images.dtype)
        chosen = inside(parameters.boxes.to(images.device), images.shape[2], images.shape[3])
        return torch.where(chosen[:, None], noise, images), targets

    def fuse(self, plan: Plan, parameters: Erasure) -> bool:
        """Set them in a pass, unless to noise."""
        return not self.random and plan.erase(parameters.boxes, self.value.expand(len(plan), plan.channels))
