"""Augmentations of one image at a time with Pillow, numpy and torch, as torchvision's first version documents them.

They are written from its documentation and the papers named below. An image is Pillow's in RGB until ``to_tensor``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Step = Callable[..., object]


def crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw RandomResizedCrop's window (left, top, right, bottom): 8 to 100 % of the area, sides of 3:4 to 4:3.

    The ratio is uniform in its logarithm. After ten windows that do not fit, it is the largest one in the middle whose
    ratio is allowed (Szegedy et al. 2015, "Going deeper with convolutions"; torchvision's documentation).
    """
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    ratio = min(max(width / height, 3 / 4), 4 / 3)
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop(image: Image.Image, size: int = 224) -> Image.Image:
    """Return a random window, resized: bilinear, with Pillow's antialiasing."""
    return image.crop(crop_box(*image.size)).resize((size, size), Image.Resampling.BILINEAR)


def random_flip(image: Image.Image) -> Image.Image:
    """Mirror every second image left to right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def color_jitter(image: Image.Image, strength: float = 0.4) -> Image.Image:
    """Change brightness, contrast and saturation, in random order, by factors from 1 - strength to 1 + strength."""
    for enhance in random.sample((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), 3):
        image = enhance(image).enhance(random.uniform(1 - strength, 1 + strength))
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """Return float32 [3, h, w] from 0 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def lighting(values: Sequence[float], vectors: Sequence[Sequence[float]], std: float = 0.1) -> Step:
    """Return what adds random multiples of the colours' principal components (Krizhevsky et al. 2012, section 4.1)."""
    directions = torch.tensor(vectors) * torch.tensor(values)

    def add(image: Tensor) -> Tensor:
        return image + (directions @ torch.normal(0.0, std, (3,))).view(3, 1, 1)

    return add


def normalize(mean: Sequence[float], std: Sequence[float]) -> Step:
    """Return what shifts and scales each channel of a tensor."""
    means, stds = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    return lambda image: image.clone().sub_(means).div_(stds)


def pad_crop(image: Image.Image, padding: int = 4) -> Image.Image:
    """Return a random window of the image's own size out of the image with a black border (He et al. 2015)."""
    width, height = image.size
    left, top = random.randint(0, 2 * padding), random.randint(0, 2 * padding)
    return ImageOps.expand(image, padding).crop((left, top, left + width, top + height))


def cutout(image: Tensor, size: int = 8) -> Tensor:
    """Set a square around a random pixel to 0, as far as it is within the image (DeVries & Taylor 2017)."""
    _, height, width = image.shape
    top, left = random.randrange(height) - size // 2, random.randrange(width) - size // 2
    image[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
    return image
