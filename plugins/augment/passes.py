"""What a native pass can do, done to a batch on its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine import UsageError
from engine.plan import Plan
from engine.plan_on_tensors import carry_out


def on_tensors(images: Tensor, fuse: Callable[[Plan], bool]) -> Tensor:
    """Return images [n, c, h, w] after what ``fuse`` adds to an empty plan, on their device."""
    plan = Plan(images.shape[1], torch.tensor(images.shape[2:]).expand(len(images), 2).clone())
    if not fuse(plan):
        raise ValueError("an empty plan takes any change of colours, mirror, box and crop")
    return carry_out(plan, images)


def unit_floats(images: Tensor) -> Tensor:
    """Return images as floats: uint8 as float32 from 0 to 1, floats as they are."""
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images


def require_gray_or_colour(name: str, channels: int) -> None:
    """Raise UsageError naming an augmentation unless images have 1 or 3 channels."""
    if channels not in (1, 3):
        raise UsageError(
            f"augment.{name}: images have {channels} channels, and it is defined for gray (1) and colour (3); take it "
            "out of augment=[...]"
        )
