"""What csrc/images.h says of one image, in float64 and one pixel after the other: slow, and written from it alone."""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from torch import Tensor

from engine import ops
from engine.pictures import Pictures
from engine.plan import (
    AFFINE,
    BRIGHTNESS,
    CLIPPED,
    CONTRAST,
    FIRST,
    HIGH,
    HUE,
    LAST,
    LOW,
    ORIGIN,
    SATURATION,
    SCALE,
    Plan,
)

ISAS = [name for name, here in ops.instruction_sets().items() if here]
LUMA = np.array([0.2989, 0.587, 0.114])


def run(plan: Plan, images: Tensor, dtype: torch.dtype = torch.float32, *, nhwc: bool = False, isa: str = "") -> Tensor:
    """Return what the native pass makes of images uint8 [n, c, h, w] of one size."""
    return run_on(Pictures.of_pixels(images), plan, dtype, nhwc=nhwc, isa=isa)


def run_on(
    pictures: Pictures, plan: Plan, dtype: torch.dtype = torch.float32, *, nhwc: bool = False, isa: str = ""
) -> Tensor:
    """Return what the native pass makes of pictures; memory that it does not write holds another number."""
    layout = torch.channels_last if nhwc else torch.contiguous_format
    out = torch.empty(len(plan), *plan.shape, dtype=dtype, memory_format=layout).fill_(77)
    ops.transform(pictures, plan, out, isa=isa)
    return out


def plan_for(images: Tensor) -> Plan:
    """Return a plan that does nothing to images uint8 [n, c, h, w] yet."""
    return Plan(images.shape[1], torch.tensor(images.shape[2:]).expand(len(images), 2).clone())


def weights(axis: np.ndarray, size: int, places: int) -> np.ndarray:
    """Return [places, size]: how much each pixel counts; rows of zeros are the border."""
    table = np.zeros((places, size))
    for place in range(int(axis[LOW]), int(axis[HIGH])):
        if axis[SCALE] == 1 and axis[ORIGIN] % 1 == 0:
            table[place, int(axis[ORIGIN]) + place] = 1
            continue
        position = axis[ORIGIN] + (place + 0.5) * axis[SCALE]
        for pixel in range(int(axis[FIRST]), int(axis[LAST])):
            table[place, pixel] = max(0, 1 - abs(pixel + 0.5 - position) / max(axis[SCALE], 1))
        table[place] /= table[place].sum()
    return table


def resampled(plan: Plan, image: np.ndarray, number: int) -> np.ndarray:
    """Return float64 [c, height, width] of 0..255, not rounded: a window of uint8 [c, h, w], mirrored, bordered."""
    axes, (height, width) = plan.axes[number].numpy(), plan.sizes[number].tolist()
    down, right = weights(axes[0], image.shape[1], height), weights(axes[1], image.shape[2], width)
    out = down @ image.astype(np.float64) @ right.T
    shown = down.any(1)[:, None] & right.any(1)[None, :]
    fill = np.array(plan.fill or (0,) * len(image), dtype=np.float64)
    out = np.where(shown, out, fill[:, None, None])
    return out[:, :, ::-1] if plan.mirrored[number] else out


def grey(image: np.ndarray) -> np.ndarray:
    """Return [1, h, w], the luma of an image [c, h, w]; of one channel that channel."""
    return image if len(image) == 1 else np.tensordot(LUMA, image, 1)[None]


def turned(image: np.ndarray, turn: float) -> np.ndarray:
    """Return colours [3, h, w] of 0..1 with their hue turned, by Python's colorsys."""
    out = np.empty_like(image)
    for place in np.ndindex(image.shape[1:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[(slice(None), *place)])
        out[(slice(None), *place)] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    return out


def changed(image: np.ndarray, kind: int, factors: np.ndarray) -> np.ndarray:
    """Return float64 [c, h, w] of 0..1 after one change of colour."""
    clips, kind, factor = kind & CLIPPED, kind & ~CLIPPED, factors[0]
    if kind == AFFINE:
        matrix = factors.reshape(3, 4)
        if len(image) == 1:
            image = image * matrix[0, 0] + matrix[0, 3]
        else:
            image = np.tensordot(matrix[:, :3], image, 1) + matrix[:, 3, None, None]
    elif kind == BRIGHTNESS:
        image = factor * image
    elif kind == CONTRAST:
        image = factor * image + (1 - factor) * grey(image).mean()
    elif kind == SATURATION:
        image = factor * image + (1 - factor) * grey(image)
    elif kind == HUE and len(image) == 3:
        image = turned(image, factor)
    return image.clip(0, 1) if clips else image


def expected(plan: Plan, image: np.ndarray, number: int) -> np.ndarray:
    """Return float64 [c, height, width]: image ``number`` of a plan, from uint8 [c, h, w], white 1."""
    return coloured(plan, resampled(plan, image, number).round(), number)


def coloured(plan: Plan, levels: np.ndarray, number: int) -> np.ndarray:
    """Return float64 [c, h, w], white 1: levels of 0..255 after the changes of colour and the boxes of an image."""
    out = levels / 255
    for kinds, factors in zip(plan.kinds, plan.factors, strict=True):
        out = changed(out, int(kinds[number]), factors[number].double().numpy())
    for boxes, values in zip(plan.boxes, plan.values, strict=True):
        top, left, bottom, right = boxes[number].tolist()
        out = out.copy()
        out[:, top:bottom, left:right] = values[number].double().numpy()[:, None, None]
    return out
