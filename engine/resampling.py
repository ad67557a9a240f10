"""Augmentations that take a window of each image and resize it: crops, resizes, scale jitter.

They come first in a chain, where images may still be of different sizes. What they decide is known before an image is
decoded, so that only the part that is wanted has to be.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import UsageError
from engine.interfaces import Augmentation
from engine.plan import Plan
from engine.plan_on_tensors import carry_out
from engine.randomness import Key


@dataclass
class Windows:
    """A window of each image, and the size that it becomes: the arguments of ``Plan.window``.

    crop, reaches: what an augmentation's windows always are, whatever the images of a batch.
    """

    boxes: Tensor  # [n, 4]: top, left, height, width
    sizes: Tensor  # int64 [n, 2]
    crop: bool = False  # mere crops, always
    reaches: bool = False  # they may reach over an image
    beyond: bool = False
    fill: Sequence[float] | None = None
    reflect: bool = False

    def add_to(self, plan: Plan) -> bool:
        """Add them to what a pass does; return whether it can do them."""
        return plan.window(
            self.boxes, self.sizes, crop=self.crop, reaches=self.reaches, beyond=self.beyond, fill=self.fill,
            reflect=self.reflect,
        )  # fmt: skip


class Resampling(Augmentation):
    """Takes windows, which ``draw_windows`` and ``test_windows`` choose by the images' sizes alone."""

    @abstractmethod
    def draw_windows(self, key: Key, samples: Tensor, sizes: Tensor) -> Windows:
        """Draw the windows of ``samples`` (int64 [n]) whose images have ``sizes`` (int64 [n, 2], height and width).

        Window i is a function of the key, the sample and its size.
        """

    @abstractmethod
    def test_windows(self, sizes: Tensor) -> Windows:
        """Return the windows that an evaluation looks at."""

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Windows:
        """Draw the windows of images of one shape."""
        return self.draw_windows(key, samples, _sizes(len(samples), shape))

    def apply(self, images: Tensor, targets: Tensor, parameters: Windows) -> tuple[Tensor, Tensor]:
        """Cut and resize the windows; uint8 images stay uint8, rounded. Raises UsageError if sizes differ then."""
        plan = Plan(images.shape[1], _sizes(len(images), images.shape[1:]))
        if not parameters.add_to(plan):
            raise UsageError(
                f"augment: {type(self).__name__} resizes a window that reaches over the image; give one inside"
            )
        return carry_out(plan, images), targets

    def test(self, images: Tensor) -> Tensor:
        """Cut and resize the windows of ``test_windows``."""
        return self.apply(images, images.new_empty(0), self.test_windows(_sizes(len(images), images.shape[1:])))[0]

    def fuse(self, plan: Plan, parameters: Windows) -> bool:
        """Add the windows to a pass."""
        return parameters.add_to(plan)

    def fuse_test(self, plan: Plan) -> bool:
        """Add the windows of ``test_windows`` to a pass."""
        return self.test_windows(plan.sizes).add_to(plan)


def fitting(sizes: Tensor, height: int, width: int) -> Windows:
    """Return windows that make images just cover height x width, cropped to the middle: what ``decode`` does."""
    own, wanted = sizes.double(), torch.tensor([height, width], dtype=torch.float64)
    extents = torch.minimum(own, wanted * (own / wanted).amin(1, keepdim=True))
    boxes = torch.cat([(own - extents) / 2, extents], 1)
    return Windows(boxes, wanted.long().expand(len(sizes), 2).clone(), beyond=True)


def _sizes(count: int, shape: Sequence[int]) -> Tensor:
    return torch.tensor(shape[-2:], dtype=torch.int64).expand(count, 2).clone()
