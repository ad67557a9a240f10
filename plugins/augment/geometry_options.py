"""Options of the augmentations that move pixels: crops, resizes, mirrors, affine maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Augment, option

if TYPE_CHECKING:
    from engine.interfaces import Augmentation

WIDTH = "width in pixels; null: as the height"
PAD = "surround an image that is smaller than the crop with black; else it is refused"
TEST = "what an evaluation sees: the crop at the centre, or the whole image"


@dataclass
class Resize(Augment):
    """Resize images: the shorter side to a size, or both to an exact one."""

    size: int = option(256, "the shorter side in pixels; with a width, the height", at_least=1)
    width: int | None = option(None, "exact width in pixels; null: in proportion", at_least=1)

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .crops import Resizing

        return Resizing(self.size, self.width)


@dataclass
class CenterCrop(Augment):
    """Cut out the middle of images."""

    size: int = option(224, "height in pixels", at_least=1)
    width: int | None = option(None, WIDTH, at_least=1)
    pad_if_needed: bool = option(False, PAD)
    test: str = option("center", TEST, choices=("center", "whole"))

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .crops import CentreCropping

        return CentreCropping("center_crop", (self.size, self.width or self.size), self.pad_if_needed, self.test)


@dataclass
class RandomCrop(Augment):
    """Cut a window out of images, at a random place."""

    size: int = option(224, "height in pixels", at_least=1)
    width: int | None = option(None, WIDTH, at_least=1)
    pad_if_needed: bool = option(False, PAD)
    test: str = option("center", TEST, choices=("center", "whole"))

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .crops import RandomCropping

        return RandomCropping("random_crop", (self.size, self.width or self.size), self.pad_if_needed, self.test)


@dataclass
class RandomResizedCrop(Augment):
    """Resize a window of random area and shape to one size (Szegedy et al. 2015)."""

    size: int = option(224, "height in pixels", at_least=1)
    width: int | None = option(None, WIDTH, at_least=1)
    scale: list[float] = option([0.08, 1.0], "smallest and largest area of the window, as a part of the image's")
    ratio: list[float] = option([3 / 4, 4 / 3], "smallest and largest width of the window by its height")
    test_size: int | None = option(
        None, "side of the crop at the centre that an evaluation sees; null: the training's", at_least=1
    )
    test_resize: int | None = option(
        None, "shorter side of the image that it is cut from; null: 256/224 of the crop, rounded", at_least=1
    )

    def build(self) -> Augmentation:
        """Make the augmentation. Raises UsageError for ranges that are none, or a test_resize below the crop."""
        from .random_resized_crop import RandomResizedCropping

        size = (self.size, self.width or self.size)
        test = (self.test_size, self.test_size) if self.test_size else size
        return RandomResizedCropping(size, self.scale, self.ratio, test, self.test_resize)


@dataclass
class RandomShortestSize(Augment):
    """Resize the shorter side of images to a random size (Simonyan and Zisserman 2014)."""

    sizes: list[int] = option([256, 480], "smallest and largest shorter side in pixels, all between equally likely")
    test_size: int | None = option(None, "shorter side in an evaluation; null: the smallest", at_least=1)

    def build(self) -> Augmentation:
        """Make the augmentation. Raises UsageError unless sizes are two, in order."""
        from .crops import ScaleJitter

        return ScaleJitter(self.sizes, self.test_size)


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
class Flip(Augment):
    """Mirror images left to right at random."""

    probability: float = option(0.5, "chance that an image is mirrored", at_least=0, at_most=1)

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .flip import Flipping

        return Flipping(self.probability)


@dataclass
class AlternatingFlip(Augment):
    """Mirror images left to right in every other epoch, each half of them in turn (Jordan 2024)."""

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .flip import AlternatingFlipping

        return AlternatingFlipping()


@dataclass
class Affine(Augment):
    """Rotate, shift, scale, shear and stretch images at random; what comes in is black."""

    degrees: list[float] = option([10.0], "largest turn either way in degrees, or the smallest and the largest")
    translate: list[float] = option([], "largest shift right and down, as parts of width and height; empty: none")
    scale: list[float] = option([], "smallest and largest factor of the size; empty: 1")
    shear: list[float] = option(
        [], "largest shear along x in degrees, or two: its smallest and largest, or four: also those along y"
    )
    stretch: list[float] = option(
        [], "largest ratio of horizontal to vertical scale (also its inverse), or the smallest and the largest"
    )

    def build(self) -> Augmentation:
        """Make the augmentation. Raises UsageError naming an option that is no range."""
        from .affine import RandomAffine

        return RandomAffine(self.degrees, self.translate, self.scale, self.shear, self.stretch)
