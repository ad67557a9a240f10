"""Options of the augmentations that mix images, and of random sequences of operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Augment, UsageError, option

if TYPE_CHECKING:
    from engine.interfaces import Augmentation

GROUP = "consecutive samples that are mixed with each other; run.batch must be a multiple"


@dataclass
class RandAugment(Augment):
    """Apply operations drawn from fourteen, at one strength (Cubuk et al. 2020)."""

    num_ops: int = option(2, "operations applied to each image, one after the other", at_least=0)
    magnitude: int = option(9, "their strength: the number of a bin, from 0", at_least=0)
    num_magnitude_bins: int = option(31, "bins that strengths are divided into", at_least=2)

    def build(self) -> Augmentation:
        """Make the augmentation. Raises UsageError for a magnitude beyond the bins."""
        from .rand_augment import RandomOperations

        if self.magnitude >= self.num_magnitude_bins:
            raise UsageError(
                f"augment.rand_augment.magnitude={self.magnitude}: the last of num_magnitude_bins="
                f"{self.num_magnitude_bins} bins is {self.num_magnitude_bins - 1}; choose at most that"
            )
        return RandomOperations(self.num_ops, self.magnitude, self.num_magnitude_bins)


@dataclass
class _Mixing(Augment):
    """What mixup and cutmix have in common."""

    alpha: float = option(1.0, "shape of the Beta distribution that shares are drawn from", above=0)
    probability: float = option(1.0, "chance that an image is mixed", at_least=0, at_most=1)
    group_size: int = option(2, GROUP, at_least=2)


@dataclass
class Mixup(_Mixing):
    """Blend images, and their labels alike (Zhang et al. 2018)."""

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .mixing import Blending

        return Blending(self.alpha, self.probability, self.group_size)


@dataclass
class CutMix(_Mixing):
    """Replace a rectangle of images with another image's, and a share of the label alike (Yun et al. 2019)."""

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .mixing import Pasting

        return Pasting(self.alpha, self.probability, self.group_size)
