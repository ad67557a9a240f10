"""Random changes of brightness, contrast, saturation and hue, as torchvision's ColorJitter changes floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import Key, uniform
from engine.interfaces import Augmentation
from engine.plan import BRIGHTNESS, CLIPPED, CONTRAST, HUE, SATURATION, Plan

from .draws import span
from .passes import on_tensors, require_gray_or_colour


@dataclass
class Changes:
    """Each image's changes in the order in which they are made."""

    kinds: Tensor  # int32 [n, changes]: the numbers of engine.plan
    factors: Tensor  # float32 [n, changes]


class ColourJitter(Augmentation):
    """Changes each image by factors of its own, in an order of its own.

    A factor f makes f x + (1 - f) y of a colour x, where y is black (brightness), the mean gray of the image
    (contrast) or the pixel's gray (saturation); a hue is turned in HSV. With ``clip`` every change ends from 0 to 1.
    Without, brightness, contrast and saturation are linear maps, and only what a hue is turned of is clipped before,
    as HSV is defined for nothing else.
    """

    def __init__(
        self,
        brightness: Sequence[float],
        contrast: Sequence[float],
        saturation: Sequence[float],
        hue: Sequence[float],
        clip: bool,
    ) -> None:
        self.clip = clip
        self.ranges: dict[int, tuple[float, float]] = {}
        for kind, name, values in (
            (BRIGHTNESS, "brightness", brightness),
            (CONTRAST, "contrast", contrast),
            (SATURATION, "saturation", saturation),
        ):
            limits = span(f"color_jitter.{name}", values, around=1, low=0, high=float("inf"))
            self.ranges |= {kind: limits} if limits != (1, 1) else {}
        limits = span("color_jitter.hue", hue, around=0, low=-0.5, high=0.5)
        self.ranges |= {HUE: limits} if limits != (0, 0) else {}

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Changes:
        """Return each sample's changes. Raises UsageError for images that are neither gray nor colour."""
        require_gray_or_colour("color_jitter", shape[0])
        kinds = torch.tensor(list(self.ranges), dtype=torch.int32)
        limits = torch.tensor(list(self.ranges.values()), dtype=torch.float64).view(-1, 2)
        numbers, order = uniform(key, samples, 2 * len(kinds)).chunk(2, 1)
        factors = limits[:, 0] + numbers.double() * (limits[:, 1] - limits[:, 0])
        order = order.argsort(dim=1, stable=True)
        return Changes(kinds[order], factors.gather(1, order).float())

    def apply(self, images: Tensor, targets: Tensor, parameters: Changes) -> tuple[Tensor, Tensor]:
        """Change the colours; uint8 becomes float32 from 0 to 1."""
        return on_tensors(images, lambda plan: self.fuse(plan, parameters)), targets

    def fuse(self, plan: Plan, parameters: Changes) -> bool:
        """Change them in a pass."""
        kinds = parameters.kinds.clone()
        if not self.clip and plan.channels > 1:
            kinds[:, :-1] |= torch.where(kinds[:, 1:] == HUE, CLIPPED, 0)
        return all(
            plan.change(kinds[:, place], parameters.factors[:, place], clip=self.clip)
            for place in range(kinds.shape[1])
        )
