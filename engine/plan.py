"""One pass over the pixels of a batch, put together from what several augmentations do to it.

An augmentation that native code can carry out says so in ``fuse``: it adds what it does to a ``Plan``. The engine then
reads every pixel once, from where it is stored to where the network wants it. csrc/images.h says exactly what a pass
computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ORIGIN, SCALE, FIRST, LAST, LOW, HIGH = range(6)  # what an axis is made of: csrc/images.h

NOTHING, AFFINE, BRIGHTNESS, CONTRAST, SATURATION, HUE = range(6)
CLIPPED = 256  # added to one of these: then clipped to 0..1

ROUNDING = 1e-6  # pixels by which a window that was computed may reach over the image


class Plan:
    """What becomes of the images of a batch, each described alone; every method leaves it as it was or takes all.

    channels: 1 or 3. sizes: int64 [n, 2], height and width of each image, as the next augmentation finds them. Methods
    return False where the pass could not do what is asked on top of what it does already; then the augmentation's own
    ``apply`` has to, after the pass.
    """

    def __init__(self, channels: int, sizes: Tensor) -> None:
        self.channels, self.sizes = channels, sizes
        self.fill: tuple[float, ...] | None = None  # the border's colour, 0..255; None: no image has one yet
        self.reflected = False
        self.mirrored = torch.zeros(len(sizes), dtype=torch.bool)
        self.kinds: list[Tensor] = []  # int32 [n] each
        self.factors: list[Tensor] = []  # float32 [n, 12] each
        self.boxes: list[Tensor] = []  # int32 [n, 4] each: top, left, bottom, right
        self.values: list[Tensor] = []  # float32 [n, channels] each
        axes = np.zeros((len(sizes), 2, 6))
        axes[:, :, SCALE] = 1
        axes[:, :, LAST] = axes[:, :, HIGH] = sizes.numpy()
        self.axes = torch.from_numpy(axes)
        self._resized = self._bordered = False  # whether images may have been, whichever these are
        self._mirrors = False

    def __len__(self) -> int:
        return self._count

    @property
    def sizes(self) -> Tensor:
        """int64 [n, 2]: height and width of the images as they are now."""
        return self._sizes

    @sizes.setter
    def sizes(self, sizes: Tensor) -> None:
        self._sizes, self._count = sizes, len(sizes)
        self._shape: tuple[int, int, int] | None = None
        array = sizes.numpy()
        if len(array) and (array == array[0]).all():
            self._shape = (self.channels, *array[0].tolist())

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of the images as they are now; None while their sizes differ."""
        return self._shape

    @property
    def empty(self) -> bool:
        """Whether a pass would leave images of these sizes as they are."""
        still = self.axes.new_tensor([0.0, 1.0])
        whole = bool((self.axes[:, :, :2] == still).all() and (self.axes[:, :, HIGH] == self.axes[:, :, LAST]).all())
        return whole and not (self.kinds or self.boxes or self.fill or bool(self.mirrored.any()))

    def window(
        self,
        boxes: Tensor,
        sizes: Tensor,
        *,
        crop: bool | None = None,
        reaches: bool | None = None,
        beyond: bool = False,
        fill: Sequence[float] | None = None,
        reflect: bool = False,
    ) -> bool:
        """Take a window of each image and resize it: bilinear, antialiased where it becomes smaller.

        boxes: [n, 4] numbers, (top, left, height, width) in pixels of the images as they are now. sizes: int64 [n, 2],
        the height and width that it becomes. A window of whole numbers that keeps its size is a mere crop; that one may
        reach over the image's edges, where it shows ``fill`` (by default black; 0..255 for each channel), or with
        ``reflect`` the image mirrored about its outermost pixels. A window that is resized uses no pixels outside of
        it, unless ``beyond`` says that it may use all of the image.

        crop, reaches: whether windows are always mere crops, and may ever reach over the image. Whether a pass can do
        them follows from that. An augmentation says so, because what happens to a sample must not depend on the windows
        of others; where it is not said, these windows decide. Raises ValueError for windows that are otherwise.
        """
        if crop is None and not reflect and self._still(boxes, sizes):
            return True
        crops = crop is not False and _are_crops(boxes, sizes)
        over = reaches is not True and self._over(boxes)
        if (crop and not crops) or (reaches is False and over):
            raise ValueError(
                "windows that are crops have whole numbers and their own size, and these stay in the image"
            )
        crop = crops if crop is None else crop
        reaches = over if reaches is None else reaches
        again = self._resized or self._bordered
        if self.kinds or self.boxes or self.reflected or ((again or reaches) and not crop):
            return False
        colour = tuple(float(round(value)) for value in fill) if fill is not None else (0.0,) * self.channels
        if (reflect and (again or not crop)) or (reaches and not reflect and self.fill not in (None, colour)):
            return False
        if crop and not again:
            self._crop(boxes[:, :2], sizes, reflect)
        else:
            self._resample(boxes.double(), sizes, beyond)
        if reaches and not reflect:
            self.fill = colour
        self._resized, self._bordered = self._resized or not crop, self._bordered or reaches or reflect
        return True

    def mirror(self, chosen: Tensor) -> bool:
        """Mirror the images for which ``chosen`` (bool [n]) is True, left to right."""
        if chosen.shape != self.mirrored.shape:
            raise ValueError(f"there are {len(self)} images to mirror or not, not {list(chosen.shape)}")
        self._mirrors = True
        self.mirrored = self.mirrored ^ chosen
        for box in self.boxes:
            width = self.sizes[:, 1].int()
            left, right = box[:, 1].clone(), box[:, 3].clone()
            box[:, 1] = torch.where(chosen, width - right, left)
            box[:, 3] = torch.where(chosen, width - left, right)
        return True

    def change(self, kinds: int | Tensor, factors: Tensor, *, clip: bool = False) -> bool:
        """Change colours, as numbers from 0 to 1.

        kinds: one of this module's, from NOTHING to HUE, or int [n] of them. factors: floats [n], or [n, 12] for
        AFFINE, the rows of a matrix [3, 4] that (r, g, b, 1) is multiplied with (one channel: its first row's ends).
        After a box only AFFINE for all images can be done.
        """
        after_box = not isinstance(kinds, int) or kinds != AFFINE or clip
        added = CLIPPED if clip else 0
        if isinstance(kinds, int):
            kinds = torch.full((len(self),), kinds + added, dtype=torch.int32)
        else:
            kinds = kinds.int() + added
        table = factors.float()
        if factors.ndim == 1:
            table = torch.zeros(len(self), 12)
            table[:, 0] = factors
        if self.boxes:  # they come last in a pass, so what is changed after them changes their colour
            if after_box:
                return False
            self.values = [_affine(table, value) for value in self.values]
        self.kinds.append(kinds)
        self.factors.append(table)
        return True

    def erase(self, boxes: Tensor, values: Tensor) -> bool:
        """Set boxes to a colour. boxes: int64 [n, 4], (top, left, bottom, right); values: [n, channels], 0 to 1.

        Once colours have been changed, values are of what they were changed to.
        """
        values = values.float()
        if not self.kinds:  # bytes still
            values = (values * 255).round() / 255
        corners = np.maximum(boxes.numpy().reshape(-1, 2, 2), 0)
        inside = np.minimum(corners, self.sizes.numpy()[:, None]).astype(np.int32)
        self.boxes.append(torch.from_numpy(inside.reshape(-1, 4)))
        self.values.append(values.expand(len(self), self.channels))
        return True

    def _crop(self, starts: Tensor, sizes: Tensor, reflect: bool) -> None:
        """Take mere crops of images that are neither resized nor bordered: what ``_resample`` does, in fewer steps."""
        # numpy, which takes a third of the time that torch takes for arrays of this size.
        axes, old, begin = self.axes.numpy(), self.sizes.numpy(), starts.numpy()
        new = old if sizes is self.sizes else sizes.numpy()
        if self._mirrors:
            begin = begin.copy()
            begin[:, 1] = np.where(self.mirrored.numpy(), old[:, 1] - begin[:, 1] - new[:, 1], begin[:, 1])
        if reflect:
            self.reflected = True
            axes[:, :, FIRST] = axes[:, :, ORIGIN]
            axes[:, :, LAST] = axes[:, :, ORIGIN] + old
            axes[:, :, HIGH] = new
        else:
            axes[:, :, LOW] = np.minimum(np.maximum(-begin, 0), new)
            axes[:, :, HIGH] = np.minimum(np.maximum(old - begin, 0), new)
        axes[:, :, ORIGIN] += begin
        if new is not old:
            self.sizes = sizes

    def _resample(self, boxes: Tensor, sizes: Tensor, beyond: bool) -> None:
        axes, old = self.axes.clone(), self.sizes.double()
        starts, extents = boxes[:, :2].clone(), boxes[:, 2:]
        starts[:, 1] = torch.where(self.mirrored, old[:, 1] - starts[:, 1] - extents[:, 1], starts[:, 1])
        crop = ((extents == sizes) & (starts == starts.round())).all(1, keepdim=True)
        resampled = ((axes[:, :, SCALE] != 1) | (axes[:, :, ORIGIN] != axes[:, :, ORIGIN].round())).any(1, keepdim=True)
        # What was cropped off before is not filtered; what is resampled twice was refused.
        whole = ~resampled & ~crop
        self.axes[:, :, FIRST] = torch.where(whole, axes[:, :, ORIGIN], axes[:, :, FIRST])
        self.axes[:, :, LAST] = torch.where(whole, axes[:, :, ORIGIN] + old, axes[:, :, LAST])
        self._take(starts, extents, sizes, crop, beyond)

    def _over(self, boxes: Tensor) -> bool:
        """Return whether a window reaches over its image, by more than rounding where it is computed."""
        slack = ROUNDING if boxes.is_floating_point() else 0
        array = boxes.numpy()
        starts, ends = array[:, :2], array[:, :2] + array[:, 2:]
        return bool((starts < -slack).any() or (ends > self.sizes.numpy() + slack).any())

    def _still(self, boxes: Tensor, sizes: Tensor) -> bool:
        """Return whether a window is the whole image in its own size."""
        if boxes.numpy()[:, :2].any() or not torch.equal(sizes, self.sizes):
            return False
        return bool((boxes[:, 2:] == sizes).all())

    def _take(self, starts: Tensor, extents: Tensor, sizes: Tensor, crop: Tensor, beyond: bool) -> None:
        axes, new = self.axes, sizes.double()
        begin = axes[:, :, ORIGIN] + starts * axes[:, :, SCALE]
        end = begin + extents * axes[:, :, SCALE]
        if not beyond:
            axes[:, :, FIRST] = torch.where(crop, axes[:, :, FIRST], torch.maximum(axes[:, :, FIRST], begin.floor()))
            axes[:, :, LAST] = torch.where(crop, axes[:, :, LAST], torch.minimum(axes[:, :, LAST], end.ceil()))
        axes[:, :, ORIGIN] = begin
        axes[:, :, SCALE] *= torch.where(crop, 1.0, extents / new)
        zero = torch.zeros_like(new)
        low = torch.clamp(axes[:, :, LOW] - starts, zero, new)
        high = torch.clamp(axes[:, :, HIGH] - starts, zero, new)
        axes[:, :, LOW] = torch.where(crop, low, zero)
        axes[:, :, HIGH] = torch.where(crop, high, new)
        self.sizes = sizes


def _are_crops(boxes: Tensor, sizes: Tensor) -> bool:
    """Return whether all windows are of whole numbers and keep their size."""
    array = boxes.numpy()
    same = bool((array[:, 2:] == sizes.numpy()).all())
    return same and not (boxes.is_floating_point() and bool((array[:, :2] != array[:, :2].round()).any()))


def _affine(factors: Tensor, values: Tensor) -> Tensor:
    """Return colours [n, channels] changed by the matrices of AFFINE."""
    matrices = factors.view(-1, 3, 4)
    if values.shape[1] == 1:
        return values * matrices[:, 0, :1] + matrices[:, 0, 3:]
    return torch.einsum("nij,nj->ni", matrices[:, :, :3], values) + matrices[:, :, 3]
