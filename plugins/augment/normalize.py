"""Normalisation of each channel, with given statistics or those of the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine import UsageError
from engine.interfaces import Augmentation, Plan, Source
from engine.plan import AFFINE

from .statistics import statistics


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (images - mean) / std in float32; uint8 images [n, c, h, w] count as 0..1, floats as they are.

    mean, std: float64 [c].
    """
    scale = (1 / (_unit(images) * std)).float().view(-1, 1, 1).to(images.device)
    shift = (-mean / std).float().view(-1, 1, 1).to(images.device)
    # A copy even of float32, because augmentations never edit what they are given.
    return images.to(torch.float32, copy=True).mul_(scale).add_(shift)


def _unit(images: Tensor) -> int:
    """Return what counts as 1: white, or the number itself."""
    return 255 if images.dtype == torch.uint8 else 1


class Normalization(Augmentation):
    """Shifts and scales each channel, in training and evaluation alike."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std):
            raise UsageError(
                f"augment.normalize: {len(mean)} mean and {len(std)} std values; give one of each per channel, or "
                "neither for the training images' own"
            )
        if any(value <= 0 for value in std):
            raise UsageError(f"augment.normalize.std={list(std)}: every standard deviation must be above 0")
        self.mean, self.std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self._matrices: dict[int, Tensor] = {}  # by the number of channels

    def prepare(self, training: Callable[[], Source]) -> None:
        """Compute the statistics, unless they were given. Raises UsageError if a channel is constant."""
        if len(self.mean) > 0:
            return
        self.mean, self.std = statistics(training())
        if bool((self.std <= 1e-7 * self.mean.abs()).any()):
            raise UsageError(
                f"augment.normalize: a channel of the training images is constant (std {self.std.tolist()}); give "
                "augment.normalize.mean and augment.normalize.std"
            )

    def apply(self, images: Tensor, targets: Tensor, parameters: None) -> tuple[Tensor, Tensor]:
        """Normalise the images."""
        return self.test(images), targets

    def fuse(self, plan: Plan, parameters: None) -> bool:
        """Normalise in a pass. Raises UsageError as ``test`` does."""
        self._require(plan.channels)
        if plan.channels not in self._matrices:
            matrix = torch.zeros(3, 4)
            matrix[: plan.channels, : plan.channels] = torch.diag(1 / self.std.expand(plan.channels))
            matrix[: plan.channels, 3] = -self.mean / self.std
            self._matrices[plan.channels] = matrix.flatten()
        return plan.change(AFFINE, self._matrices[plan.channels].expand(len(plan), 12))

    def fuse_test(self, plan: Plan) -> bool:
        """Normalise in a pass."""
        return self.fuse(plan, None)

    def test(self, images: Tensor) -> Tensor:
        """Normalise the images. Raises UsageError if there is not one mean for each of their channels."""
        self._require(images.shape[1])
        return normalize(images, self.mean, self.std)

    def _require(self, channels: int) -> None:
        if len(self.mean) not in (1, channels):
            raise UsageError(
                f"augment.normalize.mean has {len(self.mean)} values, but the images have {channels} channels: "
                "give one per channel"
            )
