"""Rotation, shift, scale, shear and stretch in one resampling, by the definitions of torchvision's RandomAffine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from engine import Key, UsageError, uniform
from engine.interfaces import Augmentation

from .draws import between, checked, log_between, span


@dataclass
class Maps:
    """What each image of a batch undergoes, about its centre; float64 [n] each, or [n, 2] (x, y).

    angle: degrees, clockwise. translate: pixels. shear: degrees. stretch: horizontal by vertical scale, of equal area.
    """

    angle: Tensor
    translate: Tensor
    scale: Tensor
    shear: Tensor
    stretch: Tensor


def inverse_matrices(maps: Maps, centre: Tensor | None = None) -> Tensor:
    """Return float64 [n, 2, 3]: from positions (x, y, 1) in the results to those in the images, from their centres.

    An image is stretched first, then sheared along x and y, scaled, turned about ``centre`` ([2], from the image's
    own) and shifted.
    """
    turn, along_x, along_y = (angles.deg2rad() for angles in (maps.angle, maps.shear[:, 0], maps.shear[:, 1]))
    a = (turn - along_y).cos() / along_y.cos()
    b = -(a * along_x.tan() + turn.sin())
    c = (turn - along_y).sin() / along_y.cos()
    d = turn.cos() - c * along_x.tan()
    # The determinant of (a b; c d) is 1.
    linear = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1) / maps.scale[:, None, None]
    stretch = maps.stretch.sqrt()
    linear = linear * torch.stack([1 / stretch, stretch], 1)[:, :, None]
    centre = torch.zeros(2, dtype=torch.float64) if centre is None else centre
    offset = centre - (linear @ (centre + maps.translate)[:, :, None])[:, :, 0]
    return torch.cat([linear, offset[:, :, None]], 2)


def transform(images: Tensor, matrices: Tensor, mode: str = "bilinear") -> Tensor:
    """Return images [n, c, h, w] whose pixels were looked up where matrices [n, 2, 3] say; black beyond the image.

    mode: bilinear, or nearest. uint8 stays uint8, rounded.
    """
    height, width = images.shape[2:]
    work = images.dtype if images.dtype in (torch.float32, torch.float64) else torch.float32
    x = torch.arange(width, dtype=torch.float64) + 0.5 - width / 2
    y = torch.arange(height, dtype=torch.float64) + 0.5 - height / 2
    half = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    columns = x[:, None] * matrices[:, None, :, 0]  # [n, w, 2]
    rows = y[:, None] * matrices[:, None, :, 1] + matrices[:, None, :, 2]  # [n, h, 2]
    columns, rows = ((places / half).to(images.device, work) for places in (columns, rows))
    grid = rows[:, :, None] + columns[:, None]
    found = grid_sample(images.to(work), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return found.to(images.dtype) if images.is_floating_point() else found.round().to(images.dtype)


class RandomAffine(Augmentation):
    """Maps each image by numbers of its own, each uniform in its range; the logarithm of a stretch is uniform."""

    def __init__(
        self,
        degrees: Sequence[float],
        translate: Sequence[float],
        scale: Sequence[float],
        shear: Sequence[float],
        stretch: Sequence[float],
    ) -> None:
        self.degrees = span("affine.degrees", degrees, around=0, low=-float("inf"), high=float("inf"))
        if len(translate) not in (0, 2) or any(not 0 <= part <= 1 for part in translate):
            raise UsageError(
                f"augment.affine.translate={list(translate)}: give [right, down], parts of width and height from 0 to 1"
            )
        self.translate = tuple(translate) or (0.0, 0.0)
        self.scale = checked("affine.scale", scale or (1.0, 1.0), 1e-6, float("inf"))
        along_y = shear[2:] if len(shear) == 4 else ()
        self.shear = [
            span("affine.shear", values, around=0, low=-89, high=89)
            for values in (shear[:2] if len(shear) == 4 else shear, along_y)
        ]
        if len(stretch) == 1 and stretch[0] >= 1:
            stretch = (1 / stretch[0], stretch[0])
        self.stretch = checked("affine.stretch", stretch or (1.0, 1.0), 1e-6, float("inf"))

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Maps:
        """Return each sample's map; shifts are whole pixels."""
        numbers = uniform(key, samples, 7).T
        furthest = [part * side for part, side in zip(self.translate, (shape[2], shape[1]), strict=True)]
        shifts = [between(numbers[place], -most, most).round() for place, most in zip((1, 2), furthest, strict=True)]
        shears = [between(numbers[place], *limits) for place, limits in zip((3, 4), self.shear, strict=True)]
        return Maps(
            between(numbers[0], *self.degrees),
            torch.stack(shifts, 1),
            between(numbers[5], *self.scale),
            torch.stack(shears, 1),
            log_between(numbers[6], *self.stretch),
        )

    def apply(self, images: Tensor, targets: Tensor, parameters: Maps) -> tuple[Tensor, Tensor]:
        """Map the images, bilinearly."""
        return transform(images, inverse_matrices(parameters)), targets
