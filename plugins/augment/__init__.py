"""Built-in augmentations: flip, pad_crop, normalize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Augment, hookimpl, option

if TYPE_CHECKING:
    from engine.interfaces import Augmentation
    from engine.registry import Store


@dataclass
class Flip(Augment):
    """Mirror images left to right at random."""

    probability: float = option(0.5, "chance that an image is mirrored", at_least=0, at_most=1)

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .flip import Flipping

        return Flipping(self.probability)


@dataclass
class PadCrop(Augment):
    """Pad images on every side and cut a window of their own size out at random."""

    padding: int = option(4, "pixels added on every side", at_least=0)
    fill: str = option("zero", "what the padding holds: zero, or the image reflected", choices=("zero", "reflect"))

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .pad_crop import PaddedCrop

        return PaddedCrop(self.padding, self.fill)


@dataclass
class Normalize(Augment):
    """Subtract each channel's mean and divide by its standard deviation; gives float32."""

    mean: list[float] = option(
        [], "a mean per channel, or one for all, for pixels of 0 to 1; empty: the training images' own"
    )
    std: list[float] = option([], "a standard deviation per channel; empty: the training images' own")

    def build(self) -> Augmentation:
        """Make the augmentation. Raises UsageError if only one of ``mean`` and ``std`` is given or one is useless."""
        from .normalize import Normalization

        return Normalization(self.mean, self.std)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in augmentations."""
    store.add("augment", "flip", Flip)
    store.add("augment", "pad_crop", PadCrop)
    store.add("augment", "normalize", Normalize)
