"""Whether a run's images are those that its weights were trained on: range, mean, order of channels, size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from engine.pixels import Pixels

from .weights import Given

MEAN_IMAGE = "mean_image"  # among an imported network's weights: of its images' shape, in the numbers that it sees
ALIKE = 0.02  # of the range between black and white: other data's own statistics differ by less


def differences(given: Given, seen: Pixels) -> list[str]:
    """Return a line for each way in which a run's pixels are not what the weights' checkpoint says."""
    before = pixels_before(given.facts)
    if not given.facts:
        return [f"{given.origin} does not say how its images were prepared: see that augment does the same"]
    if before is None or len(before.black) != len(seen.black):
        return []
    lines = []
    if MEAN_IMAGE in given.unused:
        means = given.state[MEAN_IMAGE].double().mean((-2, -1)).flatten().tolist()
        before = _less(before, means)
        lines.append(
            f"the weights' network subtracted a mean image from its images first, this model subtracts none; its means "
            f"over the pixels are {', '.join(f'{value:.4g}' for value in means)} in the order {_order(before)}"
        )
    if list(before.order) != list(seen.order):
        lines.append(
            f"the weights take channels in the order {_order(before)}, this run gives {_order(seen)}{_reordered(seen)}"
        )
    there, here = (torch.tensor([list(p.black), list(p.white)], dtype=torch.float64) for p in (before, seen))
    if float((there - here).abs().max()) > ALIKE * float((there[1] - there[0]).abs().max()):
        lines.append(
            f"the weights were trained on pixels of {_span(before)}, this run's are {_span(seen)}: "
            f"{_overrides(before)} makes them so"
        )
    if before.size and list(before.size) != list(seen.size):
        sizes = ["x".join(map(str, pixels.size)) for pixels in (before, seen)]
        lines.append(f"the weights were trained on images of {sizes[0]}, this run's are {sizes[1]}: {_resized(before)}")
    return lines


def pixels_before(facts: Mapping[str, Any]) -> Pixels | None:
    """Return what the network of a checkpoint saw of pixels; None where it does not say."""
    if card := facts.get("preprocessing"):
        return _of_card(card)
    return Pixels(**facts["pixels"]) if facts.get("pixels") else None


def _of_card(card: Mapping[str, Any]) -> Pixels:
    """Return what a card of a Caffe import says; its means are in the order of the network's channels."""
    mean, scale = [float(value) for value in card["mean"]], float(card.get("scale", 1.0))
    order = list(range(len(mean)))
    return Pixels(
        [-value * scale for value in mean],
        [(255 - value) * scale for value in mean],
        order[::-1] if card.get("order") == "bgr" else order,
        [card["crop"]] * 2 if card.get("crop") else [],
    )


def _less(pixels: Pixels, means: Sequence[float]) -> Pixels:
    """Return pixels from which a channel's mean was subtracted."""
    black, white = ([v - m for v, m in zip(values, means, strict=True)] for values in (pixels.black, pixels.white))
    return Pixels(black, white, pixels.order, pixels.size)


def _reordered(seen: Pixels) -> str:
    """Return what turns the order of this run's channels round, if that can."""
    if len(seen.order) != 3:
        return ""
    if list(seen.order) == [2, 1, 0]:
        return ": take channel_order out of augment"
    return ": put channel_order into augment, before normalize"


def _resized(before: Pixels) -> str:
    """Return the overrides that give images their size: what is no square is not cut out, but scaled to."""
    height, width = before.size
    if height == width:
        return f"augment=[resize,center_crop,...] augment.center_crop.size={height} makes them so"
    return f"augment=[resize,...] augment.resize.size={height} augment.resize.width={width} makes them so"


def _order(pixels: Pixels) -> str:
    return "".join("rgb"[place] for place in pixels.order) if len(pixels.order) == 3 else str(list(pixels.order))


def _span(pixels: Pixels) -> str:
    return ", ".join(f"{b:.4g} to {w:.4g}" for b, w in zip(pixels.black, pixels.white, strict=True))


def _overrides(pixels: Pixels) -> str:
    """Return the overrides with which augment=normalize makes such pixels."""
    steps = [1 / (white - black) for black, white in zip(pixels.black, pixels.white, strict=True)]
    means = [-black * step for black, step in zip(pixels.black, steps, strict=True)]
    return f"augment.normalize.mean={_list(means)} augment.normalize.std={_list(steps)}"


def _list(values: Sequence[float]) -> str:
    return f"[{','.join(f'{value:.5g}' for value in values)}]"
