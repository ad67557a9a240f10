"""Sections that measure ``kernels=auto`` on a GPU: on a whole network, and on forty layers of several."""

from __future__ import annotations

import gc
from contextlib import ExitStack

import torch
from harness import Times, interleave

from engine.interfaces import DIRECTIONS

from ..layers import MIXED, Conv, some
from ..measuring import LAYOUTS, Bench, Contest, compare, geometric_mean
from ..whole import AUTO, choice, chosen_calls, network_calls, sums
from .contest import HOST_ROUNDS, TF32
from .device import in_tf32
from .replay import queueing


def network(bench: Bench) -> None:
    """VGG-16: a whole training step, and inference of one image and of many."""
    size, many = (64, 2) if bench.quick else (224, 32)
    for training, count in ((True, many), (False, 1), (False, many)):
        title = f"VGG-16 {'training step' if training else 'inference'}, N={count}, {size}x{size}, kernels=auto"
        with ExitStack() as stack, torch.set_grad_enabled(training):
            plain = network_calls(bench, size, count, training, stack)
            calls = plain | {TF32[layout]: in_tf32(plain[layout]) for layout in LAYOUTS}
            # One call at a time: a step launches hundreds of kernels, and the GPU's queue has an end.
            host = interleave({name: queueing(call, 1) for name, call in plain.items()}, HOST_ROUNDS)
            found = Contest(compare({name: bench.clock.side(call) for name, call in calls.items()}, bench.pace), AUTO)
        rows = [
            [name, found.times.spread(name).text(1e3, 2), found.gain(name).text(digits=2),
             host.spread(name).text(1e3, 2) if name in host else ""] for name in calls
        ]  # fmt: skip
        bench.report.table(title, ["", "ms", "times the engine's", "host, ms"], rows)
        del plain, calls
        gc.collect()


def auto(bench: Bench) -> None:
    """``kernels=auto`` on layers of many networks: its choices, measured again, against torch's own."""
    layers = some(MIXED, 5) if bench.quick else MIXED
    rows, gains = [], []
    for conv in layers:
        chosen = choice(bench, conv, bench.batch)
        times = replayed(bench, conv, chosen)
        whole = Times({name: sums(times, name) for name in (AUTO, *LAYOUTS, *TF32.values())})
        gains.append(whole.ratio(min(LAYOUTS, key=lambda layout: whole.spread(layout).median), AUTO).median)
        cells = [chosen.get(direction, "not needed") for direction in DIRECTIONS]
        rows.append([conv.text(), *cells, whole.spread(AUTO).text(1e3, 3)])
        rows[-1] += [whole.ratio(name, AUTO).text(digits=2) for name in (*LAYOUTS, *TF32.values())]
    heads = ["layer", *DIRECTIONS, "together, ms", *(f"times {name}" for name in (*LAYOUTS, *TF32.values()))]
    bench.report.table(f"kernels=auto, N={bench.batch}: the choice, and all directions together", heads, rows)
    print(f"geometric mean over torch's faster layout: {geometric_mean(gains):.2f}, the worst layer {min(gains):.2f}")


@torch.no_grad()
def replayed(bench: Bench, conv: Conv, chosen: dict[str, str]) -> Times:
    """Return the times of each direction by the chosen kernel and by torch in both layouts, without and with TF32."""
    calls = chosen_calls(bench, conv.spec(bench.batch, bench.device), chosen)
    calls |= {f"{d} {TF32[layout]}": in_tf32(calls[f"{d} {layout}"]) for d in chosen for layout in LAYOUTS}
    return compare({name: bench.clock.side(call) for name, call in calls.items()}, bench.pace)
