"""Sections that measure ``kernels=auto``: on a whole network, and on forty layers of several."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from harness import Times
from torch import Tensor, nn
from torch.nn import functional

from engine.interfaces import DIRECTIONS, ConvSpec, KernelChooser
from engine.measuring import call
from engine.tables import kernel_table

from .layers import MIXED, Conv, some
from .measuring import (
    LAYOUTS,
    NCHW,
    NHWC,
    Bench,
    Call,
    Contest,
    Operands,
    compare,
    geometric_mean,
    torch_call,
)
from .networks import vgg16

AUTO = "engine, kernels=auto"
LR, MOMENTUM = 1e-3, 0.9


def chooser(bench: Bench) -> KernelChooser:
    """Return what ``kernels=auto`` builds, remembering nothing."""
    return bench.installed["auto"](cache="none").build(bench.installed)  # type: ignore[call-arg]


def network(bench: Bench) -> None:
    """VGG-16: a whole training step, and the inference of a single image."""
    size = 64 if bench.quick else 224
    for training, count in ((True, bench.batch), (False, 1)):
        name = f"VGG-16 {'training step' if training else 'inference'}, N={count}, {size}x{size}, kernels=auto"
        with ExitStack() as stack, torch.set_grad_enabled(training):
            calls = network_calls(bench, size, count, training, stack)
            found = Contest(compare({name: bench.clock.side(call) for name, call in calls.items()}, bench.pace), AUTO)
        rows = [[n, found.times.spread(n).text(1e3, 1), found.gain(n).text(digits=2)] for n in calls]
        bench.report.table(name, ["", "ms", "times the engine's"], rows)
        bench.claim(f"{name}, over plain PyTorch in its best layout", found.gain().median, 1.8)
        del calls
        gc.collect()


def network_calls(
    bench: Bench, size: int, batch: int, training: bool, stack: ExitStack
) -> dict[str, Callable[[], Any]]:
    """Return a call of each of three equal networks: torch's two and the engine's, whose plan is printed.

    For inference the engine's weights stay prepared until ``stack`` closes.
    """
    images, labels = torch.randn(batch, 3, size, size).to(bench.device), torch.randint(1000, (batch,)).to(bench.device)
    first = vgg16(size).to(bench.device)
    calls: dict[str, Callable[[], Any]] = {}
    for name in (*LAYOUTS, AUTO):
        order = torch.contiguous_format if name == NCHW else torch.channels_last
        model = copy.deepcopy(first).to(memory_format=order).train(training)  # type: ignore[call-overload]
        if name == AUTO:
            kernels = chooser(bench)
            rows = kernels.apply(model, (batch, 3, size, size), training=training)
            print(f"\n{kernel_table(rows)}")
            if not training:
                stack.enter_context(kernels.prepared(model))
        arranged = images.contiguous(memory_format=order)
        calls[name] = training_step(model, arranged, labels) if training else partial(model, arranged)
    return calls


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return what makes one whole step: forward, loss, backward, update."""
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM)  # unfused: torch's fused one would copy NHWC weights

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


class Behind(nn.Module):
    """A convolution behind something that trains, so that the gradient of its images is needed as well."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(())), layer

    def forward(self, images: Tensor) -> Tensor:
        """Return the convolution of the scaled images."""
        return self.layer(images * self.scale)


def choice(bench: Bench, conv: Conv, batch: int) -> dict[str, str]:
    """Return the kernel that ``kernels=auto`` measures and takes for each direction of a layer."""
    spec = conv.spec(batch, bench.device)
    layer = nn.Conv2d(
        spec.channels, spec.filters, spec.kernel, spec.stride, spec.padding, groups=spec.groups, bias=False
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernels = chooser(bench)
    [row] = kernels.apply((nn.Sequential(layer) if conv.first else Behind(layer)).to(bench.device), spec.input_shape)
    return kernels.plan()["layers"][row.layer][1]


def auto(bench: Bench) -> None:
    """``kernels=auto`` on layers of many networks: its choices, measured again, against torch's own."""
    layers, batch = some(MIXED, 5) if bench.quick else MIXED, bench.batch
    rows, gains, worst = [], [], []
    for conv in layers:
        chosen = choice(bench, conv, batch)
        times = measured_again(bench, conv, batch, chosen)
        each = {d: times.ratio(f"{d} {NHWC}", f"{d} {AUTO}") for d in chosen}
        whole = Times({name: sums(times, name) for name in (AUTO, *LAYOUTS)})
        gains.append(whole.ratio(NHWC, AUTO).median)
        worst.append(min(spread.median for spread in each.values()))
        cells = [f"{chosen[d]} {each[d].text(digits=2)}" if d in each else "not needed" for d in DIRECTIONS]
        rows.append([conv.text(), *cells, *(whole.ratio(layout, AUTO).text(digits=2) for layout in LAYOUTS)])
    heads = ["layer", *DIRECTIONS, *(f"together, times {layout}" for layout in LAYOUTS)]
    bench.report.table(f"kernels=auto, N={batch}: the choice, and times {NHWC}", heads, rows)
    print(f"the slowest single direction of all: {min(worst):.3f} times {NHWC}")
    name = f"kernels=auto over native, {len(layers)} layers, N={batch}, all directions together"
    bench.claim(f"{name}: geometric mean", geometric_mean(gains), 1.5)
    bench.claim(f"{name}: the worst layer", min(gains), 0.97)


@torch.no_grad()
def measured_again(bench: Bench, conv: Conv, batch: int, chosen: dict[str, str]) -> Times:
    """Return the times of each direction by the chosen kernel and by torch in both layouts, all in turns."""
    calls = chosen_calls(bench, conv.spec(batch, bench.device), chosen)
    return compare({name: bench.clock.side(call) for name, call in calls.items()}, bench.pace)


def chosen_calls(bench: Bench, spec: ConvSpec, chosen: dict[str, str]) -> dict[str, Call]:
    """Return a call of each direction by the chosen kernel and by torch in both layouts: "forward torch NCHW"."""
    arrays = {layout: Operands.of(spec, layout) for layout in LAYOUTS}
    calls: dict[str, Call] = {}
    untouched = set(chosen.values()) == {"native"}  # then a model computes as it does without the engine
    for direction, name in chosen.items():
        [kernel] = bench.kernels([name])
        ours = torch_call(spec, direction, arrays[NHWC]) if untouched else None
        calls[f"{direction} {AUTO}"] = ours or call(spec, direction, kernel, arrays=arrays[NHWC])
        for layout in LAYOUTS:
            calls[f"{direction} {layout}"] = torch_call(spec, direction, arrays[layout])
    return calls


def sums(times: Times, name: str) -> list[float]:
    """Return the seconds of all directions of a side together, round by round."""
    return [sum(seconds) for seconds in zip(*(t for key, t in times.items() if key.endswith(name)), strict=True)]
