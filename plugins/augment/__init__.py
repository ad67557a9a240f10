"""Built-in augmentations: geometry (crops, resizes, mirrors, affine maps), pixels (colour, noise, erasing) and mixing.

Names, defaults and definitions are those of torchvision's transforms v2 where it has them: docs/augmentation.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import hookimpl

from .geometry_options import (
    Affine,
    AlternatingFlip,
    CenterCrop,
    Flip,
    PadCrop,
    RandomCrop,
    RandomResizedCrop,
    RandomShortestSize,
    Resize,
)
from .mixing_options import CutMix, Mixup, RandAugment
from .pixel_options import ChannelOrder, ColorJitter, Cutout, GaussianNoise, Lighting, Normalize, RandomErasing

if TYPE_CHECKING:
    from engine.registry import Store

__all__ = [
    "Affine", "AlternatingFlip", "CenterCrop", "ChannelOrder", "ColorJitter", "CutMix", "Cutout", "Flip",
    "GaussianNoise", "Lighting", "Mixup", "Normalize", "PadCrop", "RandAugment", "RandomCrop", "RandomErasing",
    "RandomResizedCrop", "RandomShortestSize", "Resize",
]  # fmt: skip


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in augmentations."""
    store.add("augment", "resize", Resize)
    store.add("augment", "center_crop", CenterCrop)
    store.add("augment", "random_crop", RandomCrop)
    store.add("augment", "random_resized_crop", RandomResizedCrop)
    store.add("augment", "random_shortest_size", RandomShortestSize)
    store.add("augment", "pad_crop", PadCrop)
    store.add("augment", "flip", Flip)
    store.add("augment", "alternating_flip", AlternatingFlip)
    store.add("augment", "affine", Affine)
    store.add("augment", "channel_order", ChannelOrder)
    store.add("augment", "color_jitter", ColorJitter)
    store.add("augment", "lighting", Lighting)
    store.add("augment", "gaussian_noise", GaussianNoise)
    store.add("augment", "cutout", Cutout)
    store.add("augment", "random_erasing", RandomErasing)
    store.add("augment", "normalize", Normalize)
    store.add("augment", "rand_augment", RandAugment)
    store.add("augment", "mixup", Mixup)
    store.add("augment", "cutmix", CutMix)
