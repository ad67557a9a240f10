"""What trains in each stage of a transfer, and how fast: a line for every parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from engine import Options, Session, UsageError
from engine.composed import STEPS, composed_transfer
from engine.freezing import freeze, has_statistics, still_layers
from engine.groups import parameter_groups, scaled_by_factors
from engine.interfaces import Anatomy, Stage, Transfer

HEADER = ("parameter", "shape", "is", "lr", "weight decay", "BatchNorm", "from")


def tables(session: Session, inputs: Sequence[int], classes: int) -> Iterator[list[str]]:
    """Yield what the transfer tells of its weights, then the lines of each stage's table.

    The rates are the peaks, which the schedule's factor multiplies. Raises UsageError as ``composed_transfer`` does.
    """
    if inputs and (len(inputs) != 3 or min(inputs) < 1):
        raise UsageError(f"inputs={list(inputs)}: give channels, height and width, as inputs=[3,32,32]")
    model, anatomy, transfer, told = composed_transfer(session, inputs, classes)
    if told:
        yield told
    stages = transfer.stages(STEPS)
    for number, stage in enumerate(stages, 1):
        rows = [HEADER, *_rows(session.options, model, anatomy, transfer, stage)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        patience = f", or {stage.patience} evaluations without improvement" if stage.patience else ""
        share = f"{100 * stage.steps / STEPS:.3g} % of the run"
        yield [f"stage {number} of {len(stages)}, {stage.name}: {share}{patience}", *lines]


def _rows(
    options: Options, model: nn.Module, anatomy: Anatomy, transfer: Transfer, stage: Stage
) -> Iterator[tuple[str, ...]]:
    factors = freeze(model, transfer.factors(model, anatomy, stage))
    still = {id(layer) for layer in still_layers(model, anatomy, factors)}
    groups: Mapping[str, Any] = {
        name: group
        for group in scaled_by_factors(options.optim.build(parameter_groups(model, factors))).param_groups
        for name in group["names"]
    }
    for name, parameter in model.named_parameters():
        shape = "x".join(map(str, parameter.shape))
        trains, rate, decay = "frozen", "", ""
        if group := groups.get(name):
            trains, rate, decay = "trained", f"{group['lr']:.4g}", f"{group.get('weight_decay', 0):.4g}"
        module = model.get_submodule(name.rpartition(".")[0])
        mode = ("frozen" if id(module) in still else "trained") if has_statistics(module) else ""
        yield name, shape, trains, rate, decay, mode, _origin(transfer, name)


def _origin(transfer: Transfer, name: str) -> str:
    if transfer.new is None:
        return "random numbers"
    return "random numbers (new)" if name in transfer.new else "weights"
