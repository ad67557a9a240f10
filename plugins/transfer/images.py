"""Whether a run's images are those that its weights were trained on: range, mean, order of channels, size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from engine.pixels import Pixels

from .weights import Given

ALIKE = 0.02  # of the range between black and white: other data's own statistics differ by less


def differences(given: Given, seen: Pixels) -> list[str]:
    """Return a line for each way in which a run's pixels are not what the weights' checkpoint says they were."""
    before = pixels_before(given.facts)
    if before is None or len(before.black) != len(seen.black):
        return []
    lines = []
    if list(before.order) != list(seen.order):
        remedy = ": put channel_order into augment, before normalize" if len(before.order) == 3 else ""
        lines.append(f"the weights take channels in the order {_order(before)}, this run gives {_order(seen)}{remedy}")
    there, here = (torch.tensor([list(p.black), list(p.white)], dtype=torch.float64) for p in (before, seen))
    if float((there - here).abs().max()) > ALIKE * float((there[1] - there[0]).abs().max()):
        lines.append(
            f"the weights were trained on pixels of {_span(before)}, this run's are {_span(seen)}: "
            f"{_overrides(before)} makes them so"
        )
    if before.size and list(before.size) != list(seen.size):
        sizes = ["x".join(map(str, pixels.size)) for pixels in (before, seen)]
        remedy = f"augment=[resize,center_crop,...] augment.center_crop.size={before.size[0]} makes them so"
        lines.append(f"the weights were trained on images of {sizes[0]}, this run's are {sizes[1]}: {remedy}")
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
