"""Plans carried out by batched tensor operations, on any device and in any float type.

What native code does in one pass over bytes (csrc/images.h), for where it does not reach: floats, and GPUs for which
``engine._cuda`` was not built.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.plan import (
    AFFINE,
    BRIGHTNESS,
    CLIPPED,
    CONTRAST,
    HIGH,
    HUE,
    LAST,
    LOW,
    NOTHING,
    ORIGIN,
    SATURATION,
    SCALE,
    Plan,
)

LUMA = (0.2989, 0.587, 0.114)


def carry_out(plan: Plan, images: Tensor) -> Tensor:
    """Return the images [n, c, h, w] of a plan whose images all have one size, before and after.

    uint8 images come out as uint8, or as float32 once their colours are changed (0 is black, 1 white); floats stay in
    their type, not rounded.
    """
    shape = plan.shape
    if shape is None:
        raise ValueError("the images of the plan end in different sizes")
    bytes_in = images.dtype == torch.uint8
    plan_axes = plan.axes.to(images.device)
    if not _untouched(plan):
        images = _resampled(plan, plan_axes, images, bytes_in)
    if bool(plan.mirrored.any()):
        images = _where(plan.mirrored, images.flip(3), images)
    if plan.kinds and bytes_in:
        images = images.to(torch.float32) / 255
    for kinds, factors in zip(plan.kinds, plan.factors, strict=True):
        images = _changed(images, kinds, factors.to(images.device, images.dtype))
    for boxes, values in zip(plan.boxes, plan.values, strict=True):
        if images.dtype == torch.uint8:
            values = (values * 255).round().clamp(0, 255)
        erased = inside(boxes.to(images.device), images.shape[2], images.shape[3])
        images = torch.where(erased[:, None], values.to(images.device, images.dtype)[:, :, None, None], images)
    return images


def _untouched(plan: Plan) -> bool:
    axes = plan.axes
    still = bool((axes[:, :, ORIGIN] == 0).all() and (axes[:, :, SCALE] == 1).all() and (axes[:, :, LOW] == 0).all())
    return still and bool((axes[:, :, HIGH] == axes[:, :, LAST]).all() and (axes[:, :, HIGH] == plan.sizes).all())


def _resampled(plan: Plan, axes: Tensor, images: Tensor, round_off: bool) -> Tensor:
    """Return windows of images, by a product with a matrix of weights for each axis of each image."""
    height, width = plan.sizes[0].tolist()
    work = images.dtype if images.dtype in (torch.float32, torch.float64) else torch.float32
    down = _weights(axes[:, 0], images.shape[2], height, plan.reflected).to(work)
    right = _weights(axes[:, 1], images.shape[3], width, plan.reflected).to(work)
    taken = down[:, None] @ images.to(work) @ right[:, None].mT
    if plan.fill is not None and any(plan.fill):
        fill = torch.tensor(plan.fill, dtype=work, device=images.device).view(1, -1, 1, 1)
        shown = down.sum(2)[:, None, :, None] * right.sum(2)[:, None, None, :]
        taken = taken + (1 - shown.round()) * (fill if round_off else fill / 255)
    return (taken.round().clamp(0, 255) if round_off else taken).to(images.dtype)


def _weights(axes: Tensor, size: int, places: int, reflected: bool) -> Tensor:
    """Return float64 [n, places, size]: how much each source pixel counts at each place; all 0 beyond the border."""
    origin, scale, first, last, low, high = (axes[:, which, None, None] for which in range(6))
    place = torch.arange(places, device=axes.device, dtype=torch.float64)[None, :, None]
    pixel = torch.arange(size, device=axes.device, dtype=torch.float64)[None, None, :]
    if reflected:
        round_trip = (2 * (last - 1 - first)).clamp(min=1)  # from one outermost pixel to the other and back
        wanted = (origin + place - first).remainder(round_trip)
        wanted = first + torch.minimum(wanted, round_trip - wanted).where(last - first > 1, torch.zeros_like(wanted))
        return (pixel == wanted).double()
    distance = (pixel + 0.5 - (origin + (place + 0.5) * scale)).abs()
    weights = (1 - distance / scale.clamp(min=1)).clamp(min=0)
    mere = (scale == 1) & (origin == origin.round())
    weights = torch.where(mere, (pixel == origin + place).double(), weights)
    weights = weights * ((pixel >= first) & (pixel < last))
    weights = weights / weights.sum(2, keepdim=True).clamp(min=1e-300)
    return weights * ((place >= low) & (place < high))


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return bool [n, height, width]: what lies in boxes (top, left, bottom, right)."""
    y = torch.arange(height, device=boxes.device)[None, :, None]
    x = torch.arange(width, device=boxes.device)[None, None, :]
    top, left, bottom, right = (boxes[:, side, None, None] for side in range(4))
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def _changed(images: Tensor, kinds: Tensor, factors: Tensor) -> Tensor:
    """Return images after one change of colour, each of its own kind: kinds int32 [n], on the host, factors [n, 12]."""
    clipped, kinds = (kinds & CLIPPED) != 0, kinds & (CLIPPED - 1)
    out = images
    factor = factors[:, 0, None, None, None]
    for kind in kinds.unique().tolist():
        if kind == NOTHING:
            continue
        if kind == AFFINE:
            new = affine(images, factors.view(-1, 3, 4))
        elif kind == BRIGHTNESS:
            new = images * factor
        elif kind == CONTRAST:
            new = factor * images + (1 - factor) * luma(images).mean((2, 3), keepdim=True)
        elif kind == SATURATION:
            new = factor * images + (1 - factor) * luma(images)
        elif kind == HUE:
            new = turned(images, factors[:, 0])
        else:
            raise ValueError(f"no change of colour has the number {kind}")
        out = _where(kinds == kind, new, out)
    return _where(clipped, out.clamp(0, 1), out) if bool(clipped.any()) else out


def _where(chosen: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """Return images where ``chosen`` (bool [n], on the host) is True, and others elsewhere."""
    if bool(chosen.all()):
        return images
    return torch.where(chosen.to(images.device)[:, None, None, None], images, others)


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Return images [n, c, h, w] whose colours were multiplied with matrices [n, 3, 4], as of (r, g, b, 1)."""
    if images.shape[1] == 1:
        return images * matrices[:, 0, 0, None, None, None] + matrices[:, 0, 3, None, None, None]
    return torch.einsum("nij,njhw->nihw", matrices[:, :, :3], images) + matrices[:, :, 3, None, None]


def luma(images: Tensor) -> Tensor:
    """Return [n, 1, h, w]: 0.2989 r + 0.587 g + 0.114 b, as torchvision weighs them; of one channel that channel."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Return colour images of 0..1 with the hue of HSV turned, each by a part of the circle; gray stays as it is."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    largest, smallest = images.amax(1), images.amin(1)
    chroma = largest - smallest
    colourless = chroma == 0
    saturation = chroma / torch.where(colourless, torch.ones_like(largest), largest)
    divisor = torch.where(colourless, torch.ones_like(chroma), chroma)
    r, g, b = ((largest - channel) / divisor for channel in (red, green, blue))
    hue = torch.where(largest == red, b - g, torch.where(largest == green, 2 + r - b, 4 + g - r))
    hue = (hue / 6 + 1 + turns[:, None, None]) % 1
    sector = (hue * 6).floor()
    rest = hue * 6 - sector
    low = (largest * (1 - saturation)).clamp(0, 1)
    falling = (largest * (1 - saturation * rest)).clamp(0, 1)
    rising = (largest * (1 - saturation * (1 - rest))).clamp(0, 1)
    six = sector.long() % 6
    table = {
        0: (largest, rising, low), 1: (falling, largest, low), 2: (low, largest, rising),
        3: (low, falling, largest), 4: (rising, low, largest), 5: (largest, low, falling),
    }  # fmt: skip
    channels = []
    for channel in range(3):
        choices = torch.stack([table[number][channel] for number in range(6)])
        channels.append(choices.gather(0, six[None])[0])
    return torch.stack(channels, 1)
