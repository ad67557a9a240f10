"""Local response normalization as layers: across channels, by a kernel that keeps the images alone, and within them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.ops import lrn


class LocalResponseNorm(nn.Module):
    """Divides every number by a power of the squares of its neighbours, in channels, at the same place.

    x / (k + alpha / size * sum of x^2 over ``size`` channels around)^beta, [n, c, ...] -> the same (Krizhevsky et al.,
    "ImageNet classification with deep convolutional neural networks", NIPS 2012, section 3.3, where alpha is what
    alpha / size is here; Caffe's LRN with ACROSS_CHANNELS; ``torch.nn.LocalResponseNorm``).

    fused: compute by the engine's kernel, which keeps x alone for the backward pass, where torch's operations keep
    several tensors of its size. They compute where there is no kernel: on a GPU if ``engine._cuda`` was not built, on
    other devices, and for other types than floating point. Raises ValueError for a size below 1.
    """

    def __init__(
        self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, fused: bool = True
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size is {size}, but a window has 1 channel or more")
        self.size, self.alpha, self.beta, self.k, self.fused = size, alpha, beta, k, fused

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalized images."""
        normalize = _by_kernel if self.fused else functional.local_response_norm
        return normalize(images, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """Return the settings, as torch's layers show theirs."""
        own = "" if self.fused else ", fused=False"
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}{own}"


class WithinChannelNorm(nn.Module):
    """x / (1 + alpha * the mean of x^2 over ``size`` x ``size`` places around)^beta, in every channel apart.

    [n, c, h, w] -> the same. Caffe's LRN with norm_region: WITHIN_CHANNEL; zeros count as places beyond the border.
    Raises ValueError for an even size.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"size is {size}, but must be odd: a place has as many neighbours on each side")
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized images."""
        power = functional.avg_pool2d(x.square(), self.size, 1, self.size // 2)
        return x * (1 + self.alpha * power).pow(-self.beta)

    def extra_repr(self) -> str:
        """Return the layer's settings."""
        return f"size={self.size}, alpha={self.alpha:g}, beta={self.beta:g}"


@torch.fx.wrap
def _by_kernel(images: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Return the normalized images, by the kernel if it takes them."""
    if lrn.supports(images):
        return lrn.local_response_norm(images, size, alpha, beta, k)
    return functional.local_response_norm(images, size, alpha, beta, k)
