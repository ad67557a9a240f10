"""Options of the augmentations that change pixels where they are: colour, noise, erasing, normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Augment, option

if TYPE_CHECKING:
    from engine.interfaces import Augmentation


@dataclass
class ChannelOrder(Augment):
    """Put colours into another order: blue, green, red, as networks of Caffe's take them; gives float32."""

    order: str = option("bgr", "order of the channels", choices=("bgr", "brg", "gbr", "grb", "rbg"))

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .channel_order import Reordering

        return Reordering(self.order)


@dataclass
class ColorJitter(Augment):
    """Change brightness, contrast, saturation and hue at random, in random order."""

    brightness: list[float] = option([], "B: factors from 1 - B to 1 + B; or the smallest and largest; empty: none")
    contrast: list[float] = option([], "as brightness")
    saturation: list[float] = option([], "as brightness; grayscale images have none")
    hue: list[float] = option([], "H: turns from -H to H of the circle, at most 0.5; or the smallest and largest")
    clip: bool = option(True, "clip to black and white after each change, as torchvision; false: faster, unclipped")

    def build(self) -> Augmentation:
        """Make the augmentation. Raises UsageError naming an option that is no range."""
        from .color_jitter import ColourJitter

        return ColourJitter(self.brightness, self.contrast, self.saturation, self.hue, self.clip)


@dataclass
class Lighting(Augment):
    """Shift colours at random along the principal components of RGB pixels (Krizhevsky et al. 2012)."""

    std: float = option(0.1, "standard deviation of the shifts, in eigenvalues of colours from 0 to 1", at_least=0)
    components: str = option(
        "training", "whose components: training (the training images'), or imagenet", choices=("training", "imagenet")
    )

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .lighting import PrincipalLighting

        return PrincipalLighting(self.std, self.components)


@dataclass
class GaussianNoise(Augment):
    """Add a normally distributed number to every pixel; gives float32."""

    mean: float = option(0.0, "mean of what is added, for pixels of 0 to 1")
    sigma: float = option(0.1, "standard deviation of what is added", at_least=0)
    clip: bool = option(True, "clip the result to black and white")

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .noise import AddedNoise

        return AddedNoise(self.mean, self.sigma, self.clip)


@dataclass
class Cutout(Augment):
    """Set a square of images to 0, its centre anywhere (DeVries and Taylor 2017)."""

    size: int = option(16, "side of the square in pixels; what lies outside of the image is lost", at_least=1)

    def build(self) -> Augmentation:
        """Make the augmentation."""
        from .erasing import CuttingOut

        return CuttingOut(self.size)


@dataclass
class RandomErasing(Augment):
    """Overwrite a rectangle of random area and shape within images (Zhong et al. 2017)."""

    probability: float = option(0.5, "chance that an image gets a rectangle", at_least=0, at_most=1)
    scale: list[float] = option([0.02, 0.33], "smallest and largest area, as a part of the image's")
    ratio: list[float] = option([0.3, 3.3], "smallest and largest height by width")
    value: list[float] = option([0.0], "what it is set to, for pixels of 0 to 1 or normalised: one number, or each's")
    random: bool = option(False, "set every pixel of it to a standard normal number instead; gives float32")

    def build(self) -> Augmentation:
        """Make the augmentation. Raises UsageError for ranges that are none."""
        from .erasing import RandomRectangle

        return RandomRectangle(self.probability, self.scale, self.ratio, self.value, self.random)


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
