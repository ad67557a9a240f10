"""Built-in ways to marginalise an evaluation: flip, five_crop, ten_crop, multi_scale, mc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Marginalize, hookimpl, option

if TYPE_CHECKING:
    from engine.interfaces import Marginalization
    from engine.registry import Store

CROP = "side of the square crops in pixels; null: 7/8 of each side of the image, rounded"


@dataclass
class Flip(Marginalize):
    """The image and its mirror image, left to right."""

    def build(self) -> Marginalization:
        """Make what gives the views."""
        from .crops import Mirrored

        return Mirrored()


@dataclass
class FiveCrop(Marginalize):
    """The four corners of the image and its centre."""

    crop: int | None = option(None, CROP, at_least=1)

    def build(self) -> Marginalization:
        """Make what gives the views."""
        from .crops import Crops

        return Crops("five_crop", self.crop, mirrored=False)


@dataclass
class TenCrop(Marginalize):
    """The four corners of the image and its centre, and their mirror images (Krizhevsky et al. 2012)."""

    crop: int | None = option(None, CROP, at_least=1)

    def build(self) -> Marginalization:
        """Make what gives the views."""
        from .crops import Crops

        return Crops("ten_crop", self.crop, mirrored=True)


@dataclass
class MultiScale(Marginalize):
    """The whole image resized to several sizes, for a network that takes any (He et al. 2015)."""

    sizes: list[int] = option([224, 256, 384, 480, 640], "shorter sides in pixels")

    def build(self) -> Marginalization:
        """Make what gives the views. Raises UsageError for no size, or one that is below 1 or named twice."""
        from .scales import Scales

        return Scales(self.sizes)


@dataclass
class MonteCarlo(Marginalize):
    """The image several times, while dropout and its like draw as in training (Gal and Ghahramani 2016)."""

    samples: int = option(10, "passes", at_least=1)

    def build(self) -> Marginalization:
        """Make what gives the views."""
        from .monte_carlo import Samples

        return Samples(self.samples)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in ways to marginalise."""
    store.add("marginalize", "flip", Flip)
    store.add("marginalize", "five_crop", FiveCrop)
    store.add("marginalize", "ten_crop", TenCrop)
    store.add("marginalize", "multi_scale", MultiScale)
    store.add("marginalize", "mc", MonteCarlo)
