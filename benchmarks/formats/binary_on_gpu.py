"""Packed networks of one bit on a GPU beside torch in float32 (with and without TF32) and bfloat16.

    python benchmarks/formats/binary_on_gpu.py --write docs/results/binary-cuda-tables.md

A multilayer perceptron on pixels, and convolutions that take bits and give bits, as between two layers of a network;
torch's are without BatchNorm and sign. Weights are random; what is measured does not depend on them. Before anything
is timed a convolution's bits are compared with those of torch's in float32, and the perceptron's outputs with the
CPU's, whose last BatchNorm alone may round otherwise. Timed is the replay of a CUDA graph of calls, so the kernels
alone, and by itself what a call takes the host.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convolutions.gpu import device as gpu
from convolutions.gpu.replay import GRAPHS
from convolutions.measuring import Clock
from formats.binary import FLOAT, HALF, PACKED, perceptron, plain, random_pixels
from harness import Report, arguments, interleave, refuse

from engine.binary.network import BinaryNetwork
from engine.binary.packing import pack
from engine.binary.pixels import Pixels
from engine.ops.binary import BinaryConvolution, Thresholds, pack_signs

SHORT = "torch, float32 by TF32"
TARGET = 10.0  # times as fast as float32
PERCEPTRON = {1: None, 256: TARGET, 4096: TARGET}  # batch -> target
CONVOLUTIONS = {(128, 28, 128): TARGET, (256, 14, 256): TARGET, (512, 7, 512): TARGET}  # channels, side, batch
HOST_ROUNDS = 5
Call = Callable[[], Tensor]


def in_tf32(function: Call) -> Call:
    """Return a call of the same whose products and convolutions may round their inputs to TF32."""
    conv = gpu.in_tf32(function)

    def call() -> Tensor:
        with gpu.setting(torch.backends.cuda.matmul, "fp32_precision", "tf32"):
            return conv()

    return call


def measure_perceptron(report: Report, clock: Clock, rounds: int, width: int = 4096) -> None:
    """784-4096x3-10 on pixels, the packed network and torch's."""
    model = perceptron(width)
    packed = pack(model, random_pixels(64).float(), Pixels(torch.arange(256.0)[None]))
    on_cpu = BinaryNetwork(packed.header, packed.arrays)
    network = on_cpu.to(clock.device)
    in_float, in_half = (plain(model, dtype).to(clock.device) for dtype in (torch.float32, torch.bfloat16))
    for batch, target in PERCEPTRON.items():
        pixels = random_pixels(batch).to(clock.device)
        floats, halves = pixels.float(), pixels.bfloat16()
        sides = {
            PACKED: partial(network, pixels), FLOAT: partial(in_float, floats),
            SHORT: in_tf32(partial(in_float, floats)), HALF: partial(in_half, halves),
        }  # fmt: skip
        expected = on_cpu(random_pixels(batch)).to(clock.device)
        require_close(f"the packed network at batch {batch}", sides[PACKED](), expected)
        compare(report, clock, f"784-{width}x3-10, batch {batch}", sides, rounds, target)


def measure_convolutions(report: Report, clock: Clock, rounds: int, scale: int = 1) -> None:
    """3x3 convolutions of bits, with their thresholds, beside F.conv2d on channels_last signs."""
    for (channels, side, batch), target in CONVOLUTIONS.items():
        torch.manual_seed(0)
        channels, batch = channels // scale, batch // scale
        signs = torch.where(torch.randn(batch, channels, side, side) >= 0, 1.0, -1.0).to(clock.device)
        weight = torch.where(torch.randn(channels, channels, 3, 3) >= 0, 1.0, -1.0)
        least, flags = torch.randint(-20, 20, (channels,), dtype=torch.int32), torch.arange(channels) % 2 == 1
        packed = BinaryConvolution(
            (weight > 0).permute(0, 2, 3, 1).numpy(), padding=(1, 1), thresholds=Thresholds.of(least, flags),
            device=clock.device,
        )  # fmt: skip
        bits = pack_signs(signs.permute(0, 2, 3, 1))
        weight, least, flags = (array.to(clock.device) for array in (weight, least, flags))
        sums = functional.conv2d(functional.pad(signs, (1, 1, 1, 1), value=-1.0), weight).permute(0, 2, 3, 1)
        expected = pack_signs(torch.where((sums >= least) ^ flags, 1.0, -1.0))
        sides: dict[str, Call] = {PACKED: partial(packed, bits)}
        require_close(f"the packed convolution of {channels} channels", sides[PACKED](), expected)
        for name, dtype in ((FLOAT, torch.float32), (HALF, torch.bfloat16)):
            images, own = (array.to(dtype, memory_format=torch.channels_last) for array in (signs, weight))
            sides[name] = partial(functional.conv2d, images, own, padding=1)
        sides[SHORT] = in_tf32(sides[FLOAT])
        name = f"convolution 3x3, {channels} channels, {side}x{side}, batch {batch}"
        compare(report, clock, name, sides, rounds, target)


def require_close(what: str, found: Tensor, expected: Tensor) -> None:
    """Raise SystemExit unless two results are equal, of floats but for their last bits: a wrong one's time is none."""
    apart = (found - expected).abs() > 1e-5 * (1 + expected.abs()) if found.is_floating_point() else found != expected
    if bool(apart.any()):
        raise SystemExit(f"{what} is not what it is compared with in {int(apart.sum())} of {apart.numel()} numbers")


def compare(
    report: Report, clock: Clock, name: str, calls: Mapping[str, Call], rounds: int, target: float | None
) -> None:
    """Time all sides, print them, and claim where there is a target."""
    host = interleave({side: clock.host(call) for side, call in calls.items()}, HOST_ROUNDS)
    times = interleave({side: clock.side(call) for side, call in calls.items()}, rounds, warmup=3)
    rows = [
        [
            side,
            times.spread(side).text(1e3, 4),
            times.ratio(side, PACKED).text(digits=2),
            host.spread(side).text(1e6, 1),
        ]
        for side in calls
    ]
    report.table(name, ["", "ms", "times the packed one's", "host, us"], rows)
    if target is not None:
        report.claim(f"{name}, times as fast as float32", times.ratio(FLOAT, PACKED).median, target, "x", at_least=True)


def options(parser: ArgumentParser) -> None:
    """Add what this benchmark takes beside the common options."""
    parser.add_argument("--write", type=Path, metavar="FILE", help="write tables and claims to a file, in Markdown")


def main(given: Sequence[str] | None = None) -> None:
    """Measure and report."""
    chosen = arguments(__doc__ or "", given, options)
    if chosen.write and not chosen.write.absolute().parent.is_dir():
        refuse("formats/binary_on_gpu.py", f"--write {chosen.write}: there is no such folder")
    if reason := gpu.missing():
        refuse("formats/binary_on_gpu.py", reason)
    torch.set_num_threads(chosen.threads)
    facts = gpu.facts()
    print(gpu.line(facts))
    heading = f"# Networks of one bit on a GPU: tables\n\n{gpu.line(facts)}"
    report = Report(chosen.json, page=chosen.write, heading=heading)
    rounds = chosen.rounds or (5 if chosen.quick else 30)
    with gpu.equal_precision(), torch.inference_mode():
        measure_perceptron(report, GRAPHS, rounds)
        measure_convolutions(report, GRAPHS, rounds)
    report.close(**facts)


if __name__ == "__main__":
    main()
