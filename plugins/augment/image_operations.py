"""The operations of RandAugment on uint8 images, as torchvision's ``transforms.v2.functional`` defines them on tensors.

Each takes images [n, c, h, w] of 1 or 3 channels and float64 [n], one number for each image, and returns uint8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from engine.plan_on_tensors import luma

from .affine import Maps, inverse_matrices, transform

Operation = Callable[[Tensor, Tensor], Tensor]


def shear_x(images: Tensor, amounts: Tensor) -> Tensor:
    """Move each row to the right by the amount for every pixel that it lies below the upper edge."""
    return _mapped(images, shear=(amounts.atan().rad2deg(), amounts * 0), corner=True)


def shear_y(images: Tensor, amounts: Tensor) -> Tensor:
    """Move each column down by the amount for every pixel that it lies right of the left edge."""
    return _mapped(images, shear=(amounts * 0, amounts.atan().rad2deg()), corner=True)


def translate_x(images: Tensor, amounts: Tensor) -> Tensor:
    """Move images to the right by a number of pixels, rounded towards 0."""
    return _mapped(images, translate=(amounts.trunc(), amounts * 0))


def translate_y(images: Tensor, amounts: Tensor) -> Tensor:
    """Move images down by a number of pixels, rounded towards 0."""
    return _mapped(images, translate=(amounts * 0, amounts.trunc()))


def rotate(images: Tensor, amounts: Tensor) -> Tensor:
    """Turn images counter-clockwise by degrees."""
    return _mapped(images, angle=-amounts)


def brightness(images: Tensor, amounts: Tensor) -> Tensor:
    """Multiply pixels with 1 + the amount."""
    factors = (1 + amounts).to(images.device, torch.float32)[:, None, None, None]
    return (images * factors).clamp_(0, 255).to(torch.uint8)


def color(images: Tensor, amounts: Tensor) -> Tensor:
    """Move pixels away from their gray by the amount of what they differ by; gray images stay as they are."""
    return images if images.shape[1] == 1 else _blended(images, luma(images.float()).floor(), amounts)


def contrast(images: Tensor, amounts: Tensor) -> Tensor:
    """Move pixels away from the image's mean gray by the amount of what they differ by."""
    gray = images.float() if images.shape[1] == 1 else luma(images.float()).floor()
    return _blended(images, gray.mean((2, 3), keepdim=True), amounts)


def sharpness(images: Tensor, amounts: Tensor) -> Tensor:
    """Move pixels but the outermost away from a smoothed image by the amount of what they differ by."""
    height, width = images.shape[2:]
    if height <= 2 or width <= 2:
        return images
    kernel = torch.full((images.shape[1], 1, 3, 3), 1 / 13, device=images.device)
    kernel[:, :, 1, 1] = 5 / 13
    smoothed = images.float()
    smoothed[:, :, 1:-1, 1:-1] = conv2d(smoothed, kernel, groups=images.shape[1]).round()
    return _blended(images, smoothed, amounts)


def posterize(images: Tensor, amounts: Tensor) -> Tensor:
    """Keep the highest bits of pixels, as many as the amount."""
    dropped = 8 - amounts.long().clamp(0, 8)
    masks = (255 >> dropped << dropped).to(images.device, torch.uint8)
    return images & masks[:, None, None, None]


def solarize(images: Tensor, amounts: Tensor) -> Tensor:
    """Invert pixels that are at least the amount, where 1 is white."""
    limits = (amounts * 255).to(images.device, torch.float32)[:, None, None, None]
    return torch.where(images.float() >= limits, 255 - images, images)


def autocontrast(images: Tensor, amounts: Tensor) -> Tensor:
    """Stretch each channel from black to white; one that is of a single value stays as it is."""
    values = images.float()
    least, largest = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    flat = least == largest
    scale = torch.where(flat, 1.0, (largest - least) * (1 / 255))
    stretched = (values - torch.where(flat, 0.0, least)) / scale
    return stretched.clamp_(0, 255).to(torch.uint8)


def equalize(images: Tensor, amounts: Tensor) -> Tensor:
    """Map the levels of each channel so that all are about equally frequent, by the table that Pillow makes."""
    flat = images.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = (counts > 0).long().cumsum(2).argmax(2, keepdim=True)
    step = (flat.shape[2] - counts.gather(2, last)) // 255
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(2, flat), flat).to(torch.uint8).view(images.shape)


def identity(images: Tensor, amounts: Tensor) -> Tensor:
    """Leave images as they are."""
    return images


def _blended(images: Tensor, others: Tensor, amounts: Tensor) -> Tensor:
    """Return image + amount x (image - other), clipped and rounded down."""
    amounts = amounts.to(images.device, torch.float32)[:, None, None, None]
    return (images + amounts * (images - others)).clamp_(0, 255).to(torch.uint8)


def _mapped(
    images: Tensor,
    *,
    angle: Tensor | None = None,
    translate: tuple[Tensor, Tensor] | None = None,
    shear: tuple[Tensor, Tensor] | None = None,
    corner: bool = False,
) -> Tensor:
    """Return images mapped about their centre, or upper left corner; the nearest pixel each, black from outside."""
    none = torch.zeros(len(images), dtype=torch.float64)
    pairs = [torch.stack(pair or (none, none), 1) for pair in (translate, shear)]
    maps = Maps(none if angle is None else angle, pairs[0], none + 1, pairs[1], none + 1)
    centre = -torch.tensor(images.shape[:1:-1], dtype=torch.float64) / 2 if corner else None
    return transform(images, inverse_matrices(maps, centre), "nearest")
