"""The engine's time per step over the same loop written by hand, beside PyTorch Lightning and Ignite.

With ``--device cuda``: the host's time per step on a GPU, over the same loop written by hand, also by CUDA graphs.

Every loop trains the same network from the same weights on the same ready batches with fused SGD; that they end with
the same weights, to the last bit, is checked. Each turn is a whole fit; it is timed from one request for a batch to a
later one, so its set-up and its end are left out. See docs/results/overhead.md.
"""

from __future__ import annotations

import gc
import importlib.util
import shlex
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from convolutions.gpu import device
from harness import Report, Side, Times, arguments, interleave, refuse
from loops import Loop, Work, plain
from loops.ours import CLASSES, engine_loop
from loops.sections import sections
from torch import nn

from engine.registry import Registry

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
BATCHES = 8  # that the loops use in turn
PLAIN = "plain PyTorch"
AGAIN = "plain PyTorch once more"  # how far its ratio is from 1 is what the other ratios may be off by
ACCURACY = "plain PyTorch, accuracy too"
ENGINE, ENGINE_ALONE = "engine", "engine, no observers"
BY_GRAPH, ENGINE_BY_GRAPH = "plain PyTorch, CUDA graph", "engine, CUDA graph"
LIGHTNING, IGNITE = "Lightning, barebones", "Ignite, no handlers"
AT_20_MS = (PLAIN, ENGINE, AGAIN, LIGHTNING, IGNITE)  # with --quick


def network(model: str, shape: tuple[int, int, int], **settings: int) -> nn.Module:
    """Return a network of the engine's own, the same at every call."""
    torch.manual_seed(0)
    return Registry.load().entry("model", model).options(**settings).build(shape, CLASSES)  # type: ignore[attr-defined]


def batches(shape: tuple[int, int, int], size: int, where: str = "cpu") -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return ready batches of noise, the same on every device."""
    generator = torch.Generator().manual_seed(1)
    made = [
        (torch.randn(size, *shape, generator=generator), torch.randint(CLASSES, (size,), generator=generator))
        for _ in range(BATCHES)
    ]
    return [(images.to(where), targets.to(where)) for images, targets in made]


def calibrated(name: str, net: nn.Module, shape: tuple[int, int, int], wanted: float, steps: int, skipped: int) -> Work:
    """Return the work whose batch size makes a plain step take nearest to ``wanted`` seconds."""
    best: tuple[float, Work, float] | None = None
    for size in SIZES:
        work = Work(net, batches(shape, size), steps, skipped)
        short = Work(net, work.batches, max(3, steps // 5), 2)
        took = statistics.median(plain.plain(short)[0] for _ in range(3))
        off = max(took / wanted, wanted / took)
        if best is None or off < best[0]:
            best = off, work, took
        if took > 2 * wanted:
            break
    assert best is not None, "at least one size was tried"
    _, work, took = best
    shown = "x".join(str(side) for side in shape)
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{name}: batch {len(work.batches[0][1])} of {shown}, {parameters:,} parameters, {took * 1e3:.2f} ms plain")
    return work


def loops(registry: Registry) -> dict[str, Loop]:
    """Return the loops by name, in the order of the tables; a framework that is not installed is left out, and said."""
    found: dict[str, Loop] = {
        PLAIN: plain.plain,
        ACCURACY: plain.with_accuracy,
        "plain PyTorch, unfused SGD": partial(plain.plain, fused=False),
        ENGINE: engine_loop(registry),
        AGAIN: plain.plain,
        ENGINE_ALONE: engine_loop(registry, observers=()),
    }
    if importlib.util.find_spec("lightning"):
        from loops import lightning

        found[LIGHTNING] = lightning.bare
        found["Lightning, defaults"] = lightning.by_default
    else:
        print("no Lightning rows: it is not installed (requirements-bench.txt)")
    if importlib.util.find_spec("ignite"):
        from loops import ignite

        found[IGNITE] = ignite.bare
        found["Ignite, with handlers"] = ignite.with_handlers
    else:
        print("no Ignite rows: it is not installed (requirements-bench.txt)")
    return found


def side(loop: Loop, work: Work, ends: list[nn.Module]) -> Side:
    """Return the side that trains ``work`` once, its network then being appended to ``ends``."""

    def turn() -> float:
        gc.collect()  # nobody pays for another's garbage
        seconds, trained = loop(work)
        ends.append(trained)
        return seconds

    return turn


def compare(found: Mapping[str, Loop], work: Work, rounds: int) -> Times:
    """Let the loops take turns at ``work``. Raises SystemExit naming a loop that ends with other weights."""
    ends: dict[str, list[nn.Module]] = {name: [] for name in found}
    times = interleave({name: side(loop, work, ends[name]) for name, loop in found.items()}, rounds)
    expected = list(ends[PLAIN][0].state_dict().values())
    for name, trained in ends.items():
        fused = "unfused" not in name  # whose arithmetic rounds otherwise
        got = list(trained[-1].state_dict().values())
        if fused and not all(torch.equal(a, b) for a, b in zip(expected, got, strict=True)):
            raise SystemExit(f"{name} does not train as {PLAIN} does: its last weights differ")
    return times


def show(report: Report, title: str, times: Times) -> None:
    """Print times and ratios over the plain loops."""
    plain_ones = [name for name in (PLAIN, ACCURACY) if name in times]
    rows = [
        [name, times.spread(name).text(1e3, 2), *(times.ratio(name, over).text() for over in plain_ones)]
        for name in times
    ]
    report.table(title, ["loop", "ms", *(f"over {name}" for name in plain_ones)], rows)


def more(parser: ArgumentParser) -> None:
    """Add what this benchmark takes beside the common options."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the loops train")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write tables and claims to a file, in Markdown")


def main(given: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = arguments(__doc__ or "", given, more)
    if options.write and not options.write.absolute().parent.is_dir():
        refuse("overhead.py", f"--write {options.write}: there is no such folder")
    if options.device == "cuda":
        if reason := device.no_gpu():
            refuse("overhead.py", f"--device cuda: {reason}")
        on_gpu(options, sys.argv[1:] if given is None else given)
    else:
        on_cpu(options)


def on_gpu(options: Namespace, given: Sequence[str]) -> None:
    """Measure the host's time of a step whose kernels the GPU computes as fast as the host launches them."""
    torch.set_num_threads(1)
    facts, registry = device.facts(), Registry.load()
    print(device.line(facts))
    heading = (
        "# What the engine adds to a step on a GPU: tables\n\n"
        f"Written by `python benchmarks/overhead.py {shlex.join(given)}`; [overhead.md](overhead.md#on-a-gpu) says "
        f"what is measured and how.\n\n{device.line(facts)}"
    )
    report = Report(options.json, page=options.write, heading=heading)
    found: dict[str, Loop] = {
        PLAIN: plain.plain,
        ACCURACY: plain.with_accuracy,
        ENGINE: engine_loop(registry),
        AGAIN: plain.plain,
        ENGINE_ALONE: engine_loop(registry, observers=()),
        BY_GRAPH: plain.graphed,
        ENGINE_BY_GRAPH: engine_loop(registry, cuda_graph=True),
    }
    gc.freeze()
    times = compare(found, gpu_work(), options.rounds or (11 if options.quick else 41))
    rows = [
        [n, times.spread(n).text(1e6, 1), *(times.difference(n, over).text(1e6, 1) for over in (PLAIN, BY_GRAPH))]
        for n in times
    ]
    heads = ["loop", "us", f"us more than {PLAIN}", f"us more than {BY_GRAPH}"]
    report.table("host time of a step whose network is one linear layer, no log among them", heads, rows)
    report.claim("host time per step", times.difference(ENGINE, PLAIN).median * 1e6, 50, "us")
    by_graph = times.difference(ENGINE_BY_GRAPH, BY_GRAPH).median * 1e6
    report.claim("host time per step, by CUDA graphs", by_graph, 50, "us")
    report.close(**facts)


def gpu_work() -> Work:
    """Return the work on a GPU: steps after its queue was emptied, so few that their launches do not fill it."""
    return Work(linear_network(), batches((1, 8, 8), 16, "cuda"), 20, 10, settle=torch.cuda.synchronize)


def on_cpu(options: Namespace) -> None:
    """Measure the loops by wall time, and the host's time by itself."""
    torch.set_num_threads(options.threads)
    heading = f"# What the engine adds to a step: tables\n\nthreads: {options.threads}"
    report, registry = Report(options.json, page=options.write, heading=heading), Registry.load()
    found = loops(registry)
    gc.freeze()  # what is imported by now need not be looked through before every turn
    one_millisecond(report, found, options.rounds or (8 if options.quick else 41))
    few = {name: loop for name, loop in found.items() if name in AT_20_MS} if options.quick else found
    twenty_milliseconds(report, few, 25 if options.quick else 50, options.rounds or (7 if options.quick else 21))
    torch.set_num_threads(1)
    host_time(report, found, options.rounds or (11 if options.quick else 41))
    by_section(report, registry)
    torch.set_num_threads(options.threads)
    report.close()


def one_millisecond(report: Report, found: Mapping[str, Loop], rounds: int) -> None:
    """Report on a step of about 1 ms: 50 of them, with the engine's one log among them."""
    shape = (1, 16, 16)
    work = calibrated("1 ms step: cnn, width 8", network("cnn", shape, width=8), shape, 1e-3, 50, 10)
    times = compare(found, work, rounds)
    show(report, "a step of about 1 ms", times)
    report.claim("1 ms step, engine over plain PyTorch", times.ratio(ENGINE, PLAIN).median, 1.03, "x")
    if LIGHTNING in times:
        report.claim("1 ms step, engine over Lightning at its fastest", times.ratio(ENGINE, LIGHTNING).median, 1, "x")


def twenty_milliseconds(report: Report, found: Mapping[str, Loop], steps: int, rounds: int) -> None:
    """Report on a step of about 20 ms: ``steps`` of them, with the engine's one log among them."""
    shape = (3, 32, 32)
    work = calibrated("20 ms step: resnet20", network("resnet20", shape), shape, 20e-3, steps, 4)
    times = compare(found, work, rounds)
    show(report, "a step of about 20 ms", times)
    report.claim("20 ms step, engine over plain PyTorch", times.ratio(ENGINE, PLAIN).median, 1.01, "x")


def linear_work() -> Work:
    """Return a work whose steps have next to nothing to compute: one linear layer, 16 images of 8x8."""
    return Work(linear_network(), batches((1, 8, 8), 16), 100, 10, time.thread_time)


def linear_network() -> nn.Module:
    """Return the one linear layer, for images of 8x8."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))


def host_time(report: Report, found: Mapping[str, Loop], rounds: int) -> None:
    """Report the CPU time of a step that is all host time, two logs in a hundred steps included."""
    times = compare(found, linear_work(), rounds)
    rows = [[n, times.spread(n).text(1e6, 1), times.difference(n, PLAIN).text(1e6, 1)] for n in times]
    title = "CPU time of a step whose network is one linear layer, 1 thread"
    report.table(title, ["loop", "us", f"us more than {PLAIN}"], rows)
    extra = times.difference(ENGINE, PLAIN).median * 1e6
    report.claim("host time of hooks and bookkeeping per step", extra, 30, "us")


def by_section(report: Report, registry: Registry) -> None:
    """Report what the engine's own parts take of such a step."""
    timed = sections(linear_work(), registry)
    rows = [[section, f"{seconds * 1e6:.1f}"] for section, seconds in timed.items()]
    rows.append(["all of these", f"{sum(timed.values()) * 1e6:.1f}"])
    report.table("the same step of the engine by section (medians; no log)", ["section", "us"], rows)
    alone = sum(timed.values()) * 1e6
    report.claim("bookkeeping counted alone, accuracy included", alone, 30, "us")


if __name__ == "__main__":
    main()
