"""A network cut in two, for schemes b and c: the trunk runs once, the head on some rows at a time.

While the head computes one pass, the rows of the next are on their way, and the gradients of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine import Batch, UsageError
from engine.distributed.group import Group, Pending

from .chains import ancestors, trace
from .layouts import begin_exchange


def cut(model: nn.Module, first: str, scheme: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return what comes before layer ``first``, and it and what comes after: their modules are the model's own.

    Raises UsageError for a model that cannot be cut there.
    """
    graph = trace(model)
    way_out = "choose parallel.scheme=d or a"
    if isinstance(graph, str):
        raise UsageError(
            f"parallel.scheme={scheme} runs what follows '{first}' by itself, but the model cannot be traced "
            f"({graph}): {way_out}"
        )
    layer = next(node for node in graph.nodes if node.op == "call_module" and node.target == first)
    at = layer.args[0]
    assert isinstance(at, fx.Node)
    earlier = ancestors(at) | {at}
    later = [node for node in graph.nodes if node not in earlier and node.op != "placeholder"]
    across = {each for node in later for each in node.all_input_nodes if each not in later}
    if across != {at}:
        raise UsageError(
            f"parallel.scheme={scheme} runs what follows '{first}' by itself, but more than its input leads there: "
            f"{way_out}"
        )
    trunk, head = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in earlier or node.op == "placeholder":
            copies[node] = trunk.node_copy(node, copies.__getitem__)
    trunk.output(copies[at])
    copies = {at: head.placeholder("rows")}
    for node in later:
        copies[node] = head.node_copy(node, copies.__getitem__)
    return fx.GraphModule(model, trunk), fx.GraphModule(model, head)


def require_no_statistics(head: nn.Module) -> None:
    """Raise UsageError for a head that normalises over rows, of which scheme b gives all but one process none."""
    name = next((name for name, module in head.named_modules() if isinstance(module, _BatchNorm)), None)
    if name is not None:
        raise UsageError(f"parallel.scheme=b: '{name}' normalises rows, which one process has at a time: choose c or d")


@dataclass(frozen=True)
class Turn:
    """One pass: whose rows it has (None: everybody's), and which of a process's own."""

    owner: int | None
    rows: slice
    count: int  # of rows, over the group


def turns(scheme: str, group: Group, rows: int) -> list[Turn]:
    """Return the passes of a micro-batch of so many rows in each process."""
    if scheme == "b":
        everything = slice(0, rows)
        return [Turn(rank, everything if rank == group.rank else slice(0, 0), rows) for rank in range(group.world)]
    count = min(group.world, rows)
    slices = [slice(turn * rows // count, (turn + 1) * rows // count) for turn in range(count)]
    return [Turn(None, each, group.world * (each.stop - each.start)) for each in slices]


def gathered(group: Group, values: Tensor, schedule: Sequence[Turn]) -> Iterator[tuple[Turn, Tensor]]:
    """Yield each pass with everybody's rows of it, those of the next one being on their way meanwhile."""
    under_way = _begin_gather(group, values, schedule[0])
    for turn, following in zip(schedule, [*schedule[1:], None], strict=True):
        rows = under_way.wait()
        if following is not None:
            under_way = _begin_gather(group, values, following)
        yield turn, rows


def _begin_gather(group: Group, values: Tensor, turn: Turn) -> Pending:
    if turn.owner is None:
        return group.begin_all_gather(values[turn.rows], "activations")
    rows = values.clone() if turn.owner == group.rank else torch.empty_like(values)
    return group.begin_broadcast(rows, turn.owner, "activations")


def begin_return(group: Group, gradient: Tensor, turn: Turn) -> Callable[[], Tensor]:
    """Begin to send back partial gradients of a pass's rows; what is returned gives the sum for this process's own."""
    world, rank = group.world, group.rank
    if world == 1:
        return lambda: gradient
    if turn.owner is None:
        pending = group.begin_all_to_all(gradient, "activations")
    else:
        send = [turn.count if other == turn.owner else 0 for other in range(world)]
        receive = [turn.count if turn.owner == rank else 0] * world
        pending = begin_exchange(group, gradient, send, receive)
    return lambda: pending.wait().view(world, -1, gradient.shape[1]).sum(0)


def part_of(batch: Batch, rows: slice) -> Batch:
    """Return some rows of a micro-batch."""
    return Batch(batch.images[rows], batch.targets[rows], batch.samples[rows])
