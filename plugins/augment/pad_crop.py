"""Random crops of padded images (He et al. 2015, section 4.2), as torchvision's RandomCrop(size, padding) cuts them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from engine import Key, UsageError, uniform
from engine.interfaces import Augmentation, Plan

from .draws import below


def pad_crop(images: Tensor, offsets: Tensor, padding: int, fill: str = "zero") -> Tensor:
    """Return, for each image [c, h, w] of a batch, the h x w window at its offset in the padded image.

    offsets: int64 [n, 2], (down, right), each 0 to 2 x padding; (padding, padding) gives the image itself.
    fill: "zero", or "reflect" (mirrored about the edge pixels, which needs padding < h and w).
    """
    n, c, h, w = images.shape
    offsets, device = offsets.to(images.device), images.device
    padded = pad(images, (padding,) * 4) if fill == "zero" else _reflected(images, padding)
    height, width = h + 2 * padding, w + 2 * padding
    # All windows of w neighbouring pixels, as a view; every row of every crop is one of them, copied whole.
    windows = padded.reshape(-1).unfold(0, w, 1)
    rows = (offsets[:, :1] + torch.arange(h, device=device)) * width + offsets[:, 1:]
    starts = torch.arange(n * c, device=device).view(n, c, 1) * (height * width) + rows[:, None, :]
    return windows.index_select(0, starts.view(-1)).view(n, c, h, w)


def _reflected(images: Tensor, padding: int) -> Tensor:
    # torch's own reflection padding has no uint8 form.
    for dim in (2, 3):
        last = images.shape[dim] - 1
        places = torch.arange(-padding, last + padding + 1, device=images.device).abs()
        images = images.index_select(dim, last - (last - places).abs())
    return images


class PaddedCrop(Augmentation):
    """Cuts a window of the image's own size out of the padded image, every place equally likely."""

    def __init__(self, padding: int, fill: str) -> None:
        self.padding, self.fill = padding, fill

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Return int64 [n, 2]: how far down and right in the padded image each sample's window lies.

        Raises UsageError if the images are too small to be reflected so far.
        """
        if self.fill == "reflect" and self.padding >= min(shape[1:]):
            raise UsageError(
                f"augment.pad_crop.padding={self.padding}: images of {shape[1]}x{shape[2]} can be reflected by at "
                f"most {min(shape[1:]) - 1} pixels; choose a smaller padding or fill=zero"
            )
        return below(uniform(key, samples, 2), 2 * self.padding + 1)

    def apply(self, images: Tensor, targets: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Cut the windows that ``draw`` chose."""
        return pad_crop(images, parameters, self.padding, self.fill), targets

    def fuse(self, plan: Plan, parameters: Tensor) -> bool:
        """Cut them in a pass: windows that reach over the image."""
        boxes = torch.cat([parameters - self.padding, plan.sizes], 1)
        return plan.window(boxes, plan.sizes, crop=True, reaches=True, reflect=self.fill == "reflect")
