"""Colours in another order than red, green, blue."""

from __future__ import annotations

import torch
from torch import Tensor

from engine import UsageError
from engine.interfaces import Augmentation
from engine.plan import AFFINE, Plan

from .passes import unit_floats


class Reordering(Augmentation):
    """Puts channels into the order of ``order``, a word of r, g and b, in training and evaluation alike.

    Colours become floats, 0 to 1, as in a pass; gray images stay as they are.
    """

    def __init__(self, order: str) -> None:
        self.order = ["rgb".index(colour) for colour in order]
        self._matrix = torch.zeros(3, 4)
        self._matrix[range(3), self.order] = 1

    def apply(self, images: Tensor, targets: Tensor, parameters: None) -> tuple[Tensor, Tensor]:
        """Reorder the channels."""
        return self.test(images), targets

    def test(self, images: Tensor) -> Tensor:
        """Reorder the channels. Raises UsageError for images of another number of channels than 3 or 1."""
        require_colour(images.shape[1])
        return images if images.shape[1] == 1 else unit_floats(images)[:, self.order]

    def fuse(self, plan: Plan, parameters: None) -> bool:
        """Reorder them in a pass, which makes bytes floats from 0 to 1."""
        require_colour(plan.channels)
        return plan.channels == 1 or plan.change(AFFINE, self._matrix.flatten().expand(len(plan), 12))

    def fuse_test(self, plan: Plan) -> bool:
        """Reorder them in a pass."""
        return self.fuse(plan, None)


def require_colour(channels: int) -> None:
    """Raise UsageError unless images are colour, or gray: then there is nothing to reorder."""
    if channels not in (1, 3):
        raise UsageError(
            f"augment.channel_order: images have {channels} channels, and it is defined for colour (3); take it out of "
            "augment=[...]"
        )
