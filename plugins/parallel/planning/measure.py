"""Measuring what a plan needs: how long layers compute on this machine, and how fast a group's collectives are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.distributed.group import Group
from engine.layers import modes_kept, torch_draws_kept

from .costs import Link
from .layers import PlannedLayer, timed
from .machine import Machine, MeasuredMachine

BUDGET = 7.0  # seconds for a model; when they are over, what is still needed is called once
PASS = 0.5  # seconds that a pass of the whole model may take; larger batches are scaled from smaller ones
LARGEST = 2**28  # bytes of an input that is made for a measurement
MATRIX = 768  # rows and columns of the product that shows the machine's arithmetic
ADDED = 2**23  # numbers of the vectors that show its memory
SIZES = (2**10, 2**16, 2**20)  # numbers in a collective
SLOW = 0.1  # seconds of a collective, above which it is measured once, and not with more numbers
ROUNDS = 4
ENOUGH = 0.25  # seconds, after which a call is not repeated


def measure_machine(
    model: nn.Module,
    layers: Sequence[PlannedLayer],
    images: Sequence[int],
    share: int,
    parts: int = 1,
    budget: float = BUDGET,
) -> MeasuredMachine:
    """Return how fast this process computes ``model``, for a share of so many images of shape (channels, h, w).

    Every linear layer is measured on its own: whole, for ``share`` samples, and one of ``parts`` parts, for as many
    times the share. The others are timed in passes of the model without those, which takes at most as many samples as
    keep it below a second. The model, its gradients and torch's generators are left as they were. budget: seconds.
    """
    until = time.perf_counter() + budget
    device = next(model.parameters()).device
    machine = _bare(device, until)
    times: dict[str, dict[tuple[float, int], float]] = {}
    linear = [layer for layer in layers if layer.kind == "linear" and layer.multiply_adds]
    alone = {layer.name: model.get_submodule(layer.name) for layer in linear}
    with torch_draws_kept(device):
        samples, rest, forward = _passes(model, images, share, alone, until)
        for number, part in dict.fromkeys([(share, 1), (share * parts, parts)]):
            for layer in linear:
                if time.perf_counter() < until and number * layer.inputs * layer.activation_bytes <= LARGEST:
                    times.setdefault(layer.name, {})[number, part] = _linear(model, layer, number, part, until)
    among = sum(seconds for name, seconds in forward.items() if name not in alone)
    for layer in layers:
        if layer.name not in alone:  # a backward pass is taken to be spread over layers as the forward pass is
            times[layer.name] = {(samples, 1): rest * forward.get(layer.name, 0.0) / among if among else 0.0}
    return MeasuredMachine(machine.flops, machine.bandwidth, times)


def _bare(device: torch.device, until: float) -> Machine:
    """Return what arithmetic and memory reach here, on a product of matrices and on a sum of long vectors."""
    one, two, three = torch.ones(3, ADDED, device=device)
    square = torch.ones(MATRIX, MATRIX, device=device)
    product = _seconds(lambda: square @ square, device, until)
    added = _seconds(lambda: torch.add(one, two, out=three), device, until)
    return Machine(2 * MATRIX**3 / product, 3 * 4 * ADDED / added)


def _seconds(work: Callable[[], Any], device: torch.device, until: float, least: int = 1) -> float:
    """Return the least time of a call: what disturbs only adds to it. The first, cold, counts if it is the only one.

    least: calls that are made even if time is over.
    """
    taken: list[float] = []
    while len(taken) < least or (len(taken) <= ROUNDS and time.perf_counter() < until and sum(taken[1:]) < ENOUGH):
        began = _now(device)
        work()
        taken.append(_now(device) - began)
    return min(taken[1:] or taken)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _passes(
    model: nn.Module, images: Sequence[int], share: int, alone: Mapping[str, nn.Module], until: float
) -> tuple[int, float, dict[str, float]]:
    """Return how many samples the model without some layers was measured with, its seconds, and its layers' forward.

    alone: those layers, by name.
    """
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype

    def one_pass(given: Tensor) -> None:
        made = model(given)
        heads = made if isinstance(made, list | tuple) else [made]
        total = torch.stack([head.float().sum() for head in heads]).sum()
        if total.requires_grad:  # nothing may be left that trains
            total.backward()
        for parameter in model.parameters():
            parameter.grad = None

    def random(samples: int) -> Tensor:
        return torch.randn(samples, *images, device=device, dtype=dtype)

    samples = 2  # BatchNorm refuses one
    with _undisturbed(model), _left_out(alone.values()), torch.enable_grad():
        model.train()
        given = random(samples)
        one_pass(given)  # the first allocates memory
        forward: dict[str, float] = {}
        with timed(model, lambda: _now(device), forward):
            one_pass(given)
        once = sum(seconds for name, seconds in forward.items() if name not in alone)
        more = min(share, int(samples * PASS / (3 * once or PASS)))
        if more > samples:
            samples, given = more, random(more)
        seconds = _seconds(lambda: one_pass(given), device, until, least=2)
    return samples, seconds, forward


@contextmanager
def _left_out(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within ``with``, linear layers return means of what they are given, which takes no time to speak of."""

    def mean(outputs: int, given: Tensor) -> Tensor:
        return given.mean(-1, keepdim=True) + given.new_zeros(outputs)

    replaced = list(layers)
    for layer in replaced:
        layer.forward = partial(mean, layer.out_features)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for layer in replaced:
            del layer.forward


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Within ``with``, the model may train; its buffers, gradients and modes are put back afterwards."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        with modes_kept(model):
            yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _linear(model: nn.Module, layer: PlannedLayer, samples: int, parts: int, until: float) -> float:
    """Return the seconds of one of ``parts`` parts of a linear layer's outputs, forward and backward."""
    module: nn.Linear = model.get_submodule(layer.name)  # type: ignore[assignment]
    weight = module.weight.detach()[: max(1, module.out_features // parts)].clone().requires_grad_(layer.trained > 0)
    rows = samples * layer.inputs // module.in_features
    given = torch.randn(rows, module.in_features, device=weight.device, dtype=weight.dtype)
    given.requires_grad_(layer.input_gradient)
    gradient = torch.ones(rows, len(weight), device=weight.device, dtype=weight.dtype)

    def work() -> None:
        made = functional.linear(given, weight)
        if made.requires_grad:
            made.backward(gradient)
        given.grad = weight.grad = None

    with torch.enable_grad():
        return _seconds(work, weight.device, until)


def measure_link(group: Group, device: torch.device) -> Link:
    """Return how long collectives take in ``group``: a start and a time for each byte, of three kinds.

    All processes call this at the same time, and get the same answer. On networks on which a quarter of a megabyte
    takes a tenth of a second only smaller sizes are tried.
    """
    own = Group(group.ranks, group.rank, group.process_group, group.store, group.watch)  # its bytes are not the run's
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "all_reduce": own.all_reduce,
        "all_gather": lambda values: own.all_gather(values[: len(values) // own.world]),
        "all_to_all": lambda values: own.all_to_all(values[: len(values) // own.world * own.world]),
    }
    measured = {}
    for name, call in calls.items():
        points: list[tuple[float, float]] = []
        call(torch.zeros(own.world, device=device))  # the first opens connections
        for numbers in SIZES:
            before = sum(own.traffic.sent.values())
            rounds, seconds = _rounds(own, call, torch.zeros(max(numbers, own.world), device=device), device)
            points.append(((sum(own.traffic.sent.values()) - before) / rounds, seconds))
            if seconds > SLOW and len(points) > 1:
                break
        measured[name] = line(points)
    start, byte = measured["all_to_all"]
    return Link(start, byte, measured)


def _rounds(group: Group, call: Callable[[Tensor], Tensor], values: Tensor, device: torch.device) -> tuple[int, float]:
    """Return how often a collective was called, and the median of its seconds in the process where it took longest."""
    taken: list[float] = []
    while len(taken) < ROUNDS and sum(taken) < ENOUGH:
        began = _now(device)
        call(values)
        slowest = torch.tensor([_now(device) - began], dtype=torch.float64, device=device)
        sent = group.traffic.sent.copy()
        taken.append(float(group.all_reduce(slowest, largest=True)))
        group.traffic.sent = sent  # that all know the time is not part of it
    return len(taken), median(taken)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return start and slope, neither below 0, of the line nearest to (bytes, seconds), errors taken relative."""
    weights = [1 / seconds**2 for _, seconds in points]
    total = sum(weights)
    x = sum(w * sent for w, (sent, _) in zip(weights, points, strict=True)) / total
    y = sum(w * seconds for w, (_, seconds) in zip(weights, points, strict=True)) / total
    spread = sum(w * (sent - x) ** 2 for w, (sent, _) in zip(weights, points, strict=True))
    both = sum(w * (sent - x) * (seconds - y) for w, (sent, seconds) in zip(weights, points, strict=True))
    slope = max(0.0, both / spread) if spread else 0.0
    start = y - slope * x
    if start < 0:  # through the origin, then
        return 0.0, sum(w * s * t for w, (s, t) in zip(weights, points, strict=True)) / sum(
            w * s * s for w, (s, _) in zip(weights, points, strict=True)
        )
    return start, slope
