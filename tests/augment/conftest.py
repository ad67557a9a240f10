"""Pictures and passes for the augmentations' tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from engine import ops
from engine.interfaces import Augmentation
from engine.pictures import Pictures
from engine.plan import Plan


@pytest.fixture
def pictures() -> Callable[..., Tensor]:
    """Return a function that makes uint8 images [n, c, h, w]: smooth ones with some noise, as photographs are."""

    def make(n: int, channels: int = 3, height: int = 40, width: int = 52, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(n, channels, height // 6 + 2, width // 6 + 2, generator=generator)
        smooth = interpolate(coarse, size=(height, width), mode="bilinear")
        return ((0.85 * smooth + 0.15 * torch.rand(smooth.shape, generator=generator)) * 255).to(torch.uint8)

    return make


@pytest.fixture
def pil() -> Callable[[Tensor], Image.Image]:
    """Return a function that makes a Pillow image of uint8 [c, h, w]."""
    return lambda image: Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy() if len(image) == 1 else
                                         image.permute(1, 2, 0).numpy())  # fmt: skip


@pytest.fixture
def of_pil() -> Callable[[Image.Image], np.ndarray]:
    """Return a function that makes int64 [c, h, w] of a Pillow image."""
    return lambda image: np.atleast_3d(np.asarray(image)).transpose(2, 0, 1).astype(np.int64)


@pytest.fixture
def passed() -> Callable[..., Tensor | None]:
    """Return a function that carries out on uint8 images, natively, what an augmentation fuses; None: it refuses."""

    def run(augmentation: Augmentation, images: Tensor, parameters: Any = None, test: bool = False) -> Tensor | None:
        plan = Plan(images.shape[1], torch.tensor(images.shape[2:]).expand(len(images), 2).clone())
        if not (augmentation.fuse_test(plan) if test else augmentation.fuse(plan, parameters)):
            return None
        out = torch.empty(len(plan), *plan.shape, dtype=torch.float32 if plan.kinds else torch.uint8)
        ops.transform(Pictures.of_pixels(images), plan, out)
        return out

    return run
