"""Random shifts of colour along the principal components of RGB pixels (Krizhevsky et al. 2012, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine import Key, UsageError
from engine.interfaces import Augmentation, Source
from engine.plan import AFFINE, Plan

from .draws import normal
from .passes import on_tensors, require_gray_or_colour
from .statistics import moments

# Of ImageNet's training images, for colours from 0 to 1, as fb.resnet.torch published them and others copied them.
IMAGENET_VALUES = (0.2175, 0.0188, 0.0045)
IMAGENET_VECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)  # components are columns


class PrincipalLighting(Augmentation):
    """Adds to all pixels of an image the sum of a_i l_i p_i over the components: a_i normal with ``std``.

    p_i and l_i are the eigenvectors and eigenvalues of the covariance of colours from 0 to 1. Results are not clipped.
    Gray images get brighter or darker by a_1 times their variance.
    """

    def __init__(self, std: float, components: str) -> None:
        self.std, self.components = std, components
        self.axes = torch.tensor(IMAGENET_VECTORS, dtype=torch.float64) * torch.tensor(IMAGENET_VALUES)

    def prepare(self, training: Callable[[], Source]) -> None:
        """Find the components. Raises UsageError for images that they cannot be those of."""
        source = training()
        channels = source.shape[0]
        require_gray_or_colour("lighting", channels)
        if self.components == "imagenet":
            if channels != 3:
                raise UsageError(
                    "augment.lighting.components=imagenet: these are of colours, and the images are gray; choose "
                    "training"
                )
            return
        values, vectors = np.linalg.eigh(moments(source)[1].numpy())
        # The sign of an eigenvector is arbitrary and differs between libraries: the largest entry is made positive.
        largest = np.abs(vectors).argmax(0)
        vectors = vectors * np.sign(vectors[largest, np.arange(channels)])
        self.axes = torch.from_numpy(vectors * values.clip(min=0))

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Return float32 [n, channels]: what is added to each sample's pixels."""
        drawn = normal(key, samples, self.axes.shape[1]).double() * self.std
        return (drawn @ self.axes.T).float()

    def apply(self, images: Tensor, targets: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Shift the colours; uint8 becomes float32 from 0 to 1, and a little beyond."""
        return on_tensors(images, lambda plan: self.fuse(plan, parameters)), targets

    def fuse(self, plan: Plan, parameters: Tensor) -> bool:
        """Shift them in a pass."""
        matrices = torch.eye(3, 4).repeat(len(parameters), 1, 1)
        matrices[:, : plan.channels, 3] = parameters
        return plan.change(AFFINE, matrices.flatten(1))
