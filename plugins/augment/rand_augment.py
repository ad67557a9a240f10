"""RandAugment (Cubuk et al. 2020), as torchvision's RandAugment draws and applies it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import Key, uniform
from engine.interfaces import Augmentation

from . import image_operations as operations
from .draws import below
from .passes import require_gray_or_colour

# Each operation with its strength at a part p, from 0 to 1, of the range, for images of height h and width w, and
# whether the strength's sign is drawn.
SPACE: tuple[tuple[operations.Operation, Callable[[float, int, int], float], bool], ...] = (
    (operations.identity, lambda p, h, w: 0, False),
    (operations.shear_x, lambda p, h, w: 0.3 * p, True),
    (operations.shear_y, lambda p, h, w: 0.3 * p, True),
    (operations.translate_x, lambda p, h, w: 150 / 331 * w * p, True),
    (operations.translate_y, lambda p, h, w: 150 / 331 * h * p, True),
    (operations.rotate, lambda p, h, w: 30 * p, True),
    (operations.brightness, lambda p, h, w: 0.9 * p, True),
    (operations.color, lambda p, h, w: 0.9 * p, True),
    (operations.contrast, lambda p, h, w: 0.9 * p, True),
    (operations.sharpness, lambda p, h, w: 0.9 * p, True),
    (operations.posterize, lambda p, h, w: round(8 - 4 * p), False),
    (operations.solarize, lambda p, h, w: 1 - p, False),
    (operations.autocontrast, lambda p, h, w: 0, False),
    (operations.equalize, lambda p, h, w: 0, False),
)


@dataclass
class Sequences:
    """Which operations each image undergoes, one after the other, and how strongly."""

    kinds: Tensor  # int64 [n, operations], places in SPACE
    amounts: Tensor  # float64 [n, operations]


class RandomOperations(Augmentation):
    """Applies ``count`` operations to each image, all equally likely, at the strength of bin ``magnitude``.

    Positions are looked up by the nearest pixel, and what comes in is black. Float images of 0..1 are rounded to whole
    grey levels, and come back as floats: normalise after.
    """

    def __init__(self, count: int, magnitude: int, bins: int) -> None:
        self.count, self.part = count, magnitude / (bins - 1)

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Sequences:
        """Return sequences. Raises UsageError for images that are neither gray nor colour."""
        require_gray_or_colour("rand_augment", shape[0])
        numbers, signs = uniform(key, samples, 2 * self.count).chunk(2, 1)
        kinds = below(numbers, len(SPACE))
        strengths = torch.tensor([strength(self.part, *shape[1:]) for _, strength, _ in SPACE], dtype=torch.float64)
        signed = torch.tensor([signed for _, _, signed in SPACE])
        amounts = strengths[kinds]
        return Sequences(kinds, torch.where(signed[kinds] & (signs < 0.5), -amounts, amounts))

    def apply(self, images: Tensor, targets: Tensor, parameters: Sequences) -> tuple[Tensor, Tensor]:
        """Apply the operations, in the images' type."""
        pixels = images.clone() if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).byte()
        for place in range(self.count):
            kinds, amounts = parameters.kinds[:, place], parameters.amounts[:, place]
            for kind in kinds.unique().tolist():
                rows = (kinds == kind).nonzero()[:, 0]
                here = rows.to(images.device)
                pixels[here] = SPACE[kind][0](pixels[here], amounts[rows])
        return (pixels if images.dtype == torch.uint8 else pixels.to(images.dtype) / 255), targets
