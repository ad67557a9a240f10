"""Mirror images and crops of corners and centre, as torchvision's FiveCrop and TenCrop cut them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from engine import UsageError
from engine.interfaces import Marginalization


def five_crops(images: Tensor, height: int, width: int) -> Iterator[Tensor]:
    """Yield windows of images [n, c, h, w]: top left, top right, bottom left, bottom right, centre."""
    down, right = images.shape[2] - height, images.shape[3] - width
    for top, left in ((0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))):
        yield images[:, :, top : top + height, left : left + width]


class Mirrored(Marginalization):
    """Gives the images and their mirror images, left to right."""

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """Yield both."""
        yield images
        yield images.flip(3)


class Crops(Marginalization):
    """Gives five crops, and their mirror images if wanted."""

    def __init__(self, name: str, crop: int | None, mirrored: bool) -> None:
        self.name, self.crop, self.mirrored = name, crop, mirrored

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the crops of such images. Raises UsageError if they are larger than these."""
        if self.crop is None:
            return (7 * height + 4) // 8, (7 * width + 4) // 8
        if self.crop > min(height, width):
            raise UsageError(
                f"marginalize.{self.name}.crop={self.crop}: the images are {height}x{width}: choose at most "
                f"{min(height, width)}"
            )
        return self.crop, self.crop

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the crops. Raises UsageError for images smaller than these."""
        for crop in five_crops(images, *self.size(images.shape[2], images.shape[3])):
            yield crop
            if self.mirrored:
                yield crop.flip(3)
