"""Blended images, synthetic blobs and gradient norms: an example of a third-party package for the engine.

This module is what the entry point names, so it is imported by every ``engine`` command, ``--help`` and
completion included. That is why it imports nothing heavy: each ``build()`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Augment, Data, Observer, hookimpl, option

if TYPE_CHECKING:
    from engine.interfaces import Augmentation, Source
    from engine.registry import Store


@dataclass
class Blend(Augment):
    """Blend images and their labels (Zhang et al. 2018)."""

    alpha: float = option(0.2, "shape of the Beta distribution that blending weights are drawn from", above=0)
    group: int = option(2, "consecutive images that are blended with each other", at_least=2)

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from mixlib.blend import Blending

        return Blending(self.alpha, self.group)


@dataclass
class Blobs(Data):
    """Synthetic pictures of a disc, a square or a cross, somewhere in noise."""

    images: int = option(2000, "training images; a fifth as many to test", at_least=10)
    size: int = option(16, "side of the images in pixels", at_least=12)
    noise: float = option(0.3, "brightness of the noise, where the shape's is 1", at_least=0, at_most=1)

    def build(self, split: str) -> Source:
        """Make a split; nothing is stored, each image is drawn when it is asked for."""
        from mixlib.blobs import BlobSource

        return BlobSource(split, self.images if split == "train" else self.images // 5, self.size, self.noise)


@dataclass
class GradientNorms(Observer):
    """Write the largest gradient norm of every parameter between two logs to gradient_norms.jsonl."""

    def build(self) -> object:
        """Make the observer."""
        from mixlib.gradient_norms import LargestNorms

        return LargestNorms()


@hookimpl
def engine_options(store: Store) -> None:
    """Register the three components under the names that the command line knows them by."""
    store.add("augment", "blend", Blend)
    store.add("data", "blobs", Blobs)
    store.add("observe", "gradient_norms", GradientNorms)
