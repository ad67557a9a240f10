"""``engine compare blocks``: the arguments for small filters, as numbers (CS231n 2016, lecture 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from engine import Session, UsageError
from engine.budget.trace import trace

from .fields import fields_of
from .text import aligned, require_writable, sides, write_json

if TYPE_CHECKING:
    from . import CompareBlocks

HEADS = ("block", "weights", "in C^2", "M multiply-adds", "sees", "ReLUs", "saved KiB")


@dataclass(frozen=True)
class Cost:
    """What a block costs for one image. weights: biases left out."""

    name: str
    weights: int
    multiply_adds: int
    sees: tuple[int, int]
    nonlinearities: int
    saved: int


def blocks(channels: int) -> dict[str, nn.Sequential]:
    """Return the blocks by name, from ``channels`` to as many."""
    c, half = channels, channels // 2
    return {
        "one 7x7": _stack((c, c, 7, 7)),
        "three 3x3": _stack(*[(c, c, 3, 3)] * 3),
        "one 5x5": _stack((c, c, 5, 5)),
        "two 3x3": _stack(*[(c, c, 3, 3)] * 2),
        "one 3x3": _stack((c, c, 3, 3)),
        "1x3, 3x1": _stack((c, c, 1, 3), (c, c, 3, 1)),
        "1x1 to C/2, 3x3, 1x1 back": _stack((c, half, 1, 1), (half, half, 3, 3), (half, c, 1, 1)),
        "1x1 to C/2, 1x3, 3x1, 1x1 back": _stack(
            (c, half, 1, 1), (half, half, 1, 3), (half, half, 3, 1), (half, c, 1, 1)
        ),
        "3x3 of each channel, 1x1": _stack((c, c, 3, 3, c), (c, c, 1, 1)),
    }


def _stack(*layers: tuple[int, ...]) -> nn.Sequential:
    """Return convolutions (in, out, height, width, perhaps groups) that keep the size, each with a ReLU."""
    made = nn.Sequential()
    for given, out, height, width, *groups in layers:
        padding = (height // 2, width // 2)
        made.append(nn.Conv2d(given, out, (height, width), padding=padding, groups=(groups or [1])[0], bias=False))
        made.append(nn.ReLU())
    return made


def compare_blocks(session: Session) -> None:
    """Print a row for each block, and the lecture's sentences; write the figures to ``json=`` too."""
    job: CompareBlocks = session.options.job  # type: ignore[assignment]
    require_writable(job.json)
    if job.channels % 2:
        raise UsageError(f"channels={job.channels}: must be even, as bottlenecks have half of them")
    costs = costs_of(job.channels, job.size)
    print(
        f"blocks from C = {job.channels} to {job.channels} channels, maps of {job.size}x{job.size}, biases left out\n"
    )
    print(text(costs, job.channels))
    print("\n" + "\n".join(arguments(costs, job.channels)))
    write_json(job.json, {"channels": job.channels, "size": job.size, "blocks": [as_json(cost) for cost in costs]})


def costs_of(channels: int, size: int) -> list[Cost]:
    """Return what each block costs on maps of size x size."""
    found = []
    for name, block in blocks(channels).items():
        maps = torch.zeros(1, channels, size, size, device="meta", requires_grad=True)
        block.to("meta")
        seen = trace(block, maps)
        field = fields_of(block, maps.detach()).last
        assert field is not None, "it has convolutions and ReLUs alone"
        weights = sum(p.numel() for p in block.parameters())
        count = sum(isinstance(layer, nn.ReLU) for layer in block)
        found.append(Cost(name, weights, seen.root.multiply_adds, field.size, count, seen.total))
    return found


def text(costs: Sequence[Cost], channels: int) -> str:
    """Return the table."""
    rows = [
        [
            cost.name, f"{cost.weights:,}", f"{cost.weights / channels**2:.4g}", f"{cost.multiply_adds / 1e6:,.1f}",
            sides(cost.sees), str(cost.nonlinearities), f"{cost.saved / 2**10:,.0f}",
        ]
        for cost in costs
    ]  # fmt: skip
    return aligned(HEADS, rows)


def arguments(costs: Sequence[Cost], channels: int) -> list[str]:
    """Return a line for each comparison that the lecture makes."""
    by_name = {cost.name: cost for cost in costs}
    pairs = (
        ("one 7x7", "three 3x3"), ("one 5x5", "two 3x3"), ("one 3x3", "1x3, 3x1"),
        ("one 3x3", "1x1 to C/2, 3x3, 1x1 back"), ("one 3x3", "1x1 to C/2, 1x3, 3x1, 1x1 back"),
        ("one 3x3", "3x3 of each channel, 1x1"),
    )  # fmt: skip
    lines = []
    for names in pairs:
        one, other = (by_name[name] for name in names)
        in_squares = [f"{cost.weights / channels**2:.4g} C^2" for cost in (one, other)]
        lines.append(
            f"{one.name} against {other.name}: {in_squares[0]} against {in_squares[1]} weights, "
            f"{other.multiply_adds / one.multiply_adds:.0%} of the multiply-adds, {one.nonlinearities} against "
            f"{other.nonlinearities} ReLUs, both see {sides(one.sees)}"
        )
    return lines


def as_json(cost: Cost) -> dict[str, Any]:
    """Return a block's figures as JSON's kinds."""
    return {**vars(cost), "sees": list(cost.sees)}
