"""A plan in words: the table of strategies, the best choice layer by layer, and where splitting ceases to pay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from . import program
from .prediction import Case, Prediction, crossing

HEADS = ("", "strategy", "MB sent", "communication s", "compute s", "step s", "x one process", "")


def table(made: Sequence[Prediction], pick: Prediction) -> str:
    """Return the table of predictions, the chosen one marked by *."""
    single = made[0]
    rows = [
        (
            "*" * (one is pick), label(one), f"{one.sent / 1e6:.4g}", f"{one.communication:.4g}", f"{one.compute:.4g}",
            f"{one.lower:.4g} - {one.upper:.4g}" if one.communication else f"{one.upper:.4g}",
            f"{single.upper / one.upper:.2f}", one.remark,
        )
        for one in made
    ]  # fmt: skip
    return "\n".join(aligned(HEADS, rows))


def label(one: Prediction) -> str:
    """Return a strategy's name, and the size of its groups if it has any."""
    return f"{one.name}, groups of {one.group}" if one.group > 1 else one.name


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose columns are as wide as their longest entry."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = (heads, ["-" * width for width in widths], *rows)
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def choices_table(case: Case, one: Prediction) -> str:
    """Return how the layer-by-layer plan shares every matrix, beside its sizes; the other layers in one line."""
    linear = [(layer, c) for layer, c in zip(case.layers, one.choices, strict=True) if layer.splits]
    rows = [
        (layer.name, f"{layer.inputs} x {layer.outputs}", f"{layer.parameters / 1e6:.4g} M", choice)
        for layer, choice in linear
    ]
    others = sum(layer.parameters > 0 and not layer.splits for layer in case.layers)
    lines = aligned(("layer", "inputs x outputs", "parameters", f"best, groups of {one.group}"), rows)
    return "\n".join([*lines, f"{others} other layers with parameters: data"])


def rule(case: Case) -> Iterator[str]:
    """Yield lines on up to which batch splitting sends less than data parallelism, in one group of all processes."""
    batch = case.setting.batch
    for name, choice in (
        ("all split layers by columns", program.COLUMN),
        ("all by rows", program.ROW),
    ):
        limit = crossing(case, choice)
        if limit is None:
            continue
        verdict = "less" if batch < limit else "more"
        yield (
            f"{name}, in one group: sends less than data parallelism below a batch of {limit:.0f} over all processes; "
            f"here it is {batch}: {verdict}"
        )
    for layer in (layer for layer in case.layers if layer.splits):
        yield (
            f"{layer.name} alone: by columns below a batch of {layer.outputs} (its outputs), by rows below "
            f"{layer.inputs} (its inputs)"
        )


def report(case: Case, made: Sequence[Prediction], pick: Prediction) -> str:
    """Return the whole plan in words."""
    parts = [table(made, pick), notes(made)]
    free = next((one for one in made if one.name == "layer by layer"), None)
    if free is not None:
        if not any(one.name.startswith("hybrid") for one in made):
            parts.append("hybrid: no linear layer sends fewer bytes split than as a sum of gradients")
        parts += [choices_table(case, free), "\n".join(rule(case))]
    elif case.setting.world > 1:
        parts.append("hybrid: the model has no linear layer that can be split")
    if case.setting.world > 1 and not any(one.name == "pipeline" for one in made):
        parts.append("pipeline: the model has fewer layers than there are processes")
    return "\n\n".join(parts)


def notes(made: Sequence[Prediction]) -> str:
    """Return what the columns are."""
    return (
        "MB (10^6 bytes) are those that a process sends in a step. step s: all communication behind computing, and "
        "none of it; the choice (*) goes by the latter, among what computes the gradient of the whole batch. Each "
        "strategy has its default options: parallel= is not looked at."
        + " 'layer by layer' is the best choice of all, as a bound: no strategy carries it out."
        * (len(made) > 1)
    )


def as_json(case: Case, made: Sequence[Prediction], pick: Prediction) -> dict[str, Any]:
    """Return what the report shows as JSON values, unrounded, with every layer and every exchange."""
    return {
        "world": case.setting.world,
        "samples_per_process": case.setting.share,
        "batch": case.setting.batch,
        "chosen": pick.name,
        "group": pick.group,
        "machine": {"flops": case.machine.flops, "bytes_per_second": case.machine.bandwidth},
        "link": {"latency": case.link.latency, "seconds_per_byte": case.link.byte},
        "layers": [asdict(layer) for layer in case.layers],
        "strategies": [
            {
                "name": one.name, "group": one.group, "bytes": one.sent, "communication_s": one.communication,
                "compute_s": one.compute, "lower_s": one.lower, "upper_s": one.upper,
                "speedup": made[0].upper / one.upper, "same_gradient": one.exact,
                "choices": dict(zip((layer.name for layer in case.layers), one.choices, strict=False)),
                "remark": one.remark,
            }
            for one in made
        ],
        "crossing": {choice: crossing(case, choice) for choice in (program.COLUMN, program.ROW)},
    }  # fmt: skip
